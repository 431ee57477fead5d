"""Who computes a command's phases: processes of this machine for little work, Ray for the rest.

Each is started when it is first needed and stays for the length of the command. Ten new files took 14 s on Ray, most of
them its start.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.config import Cluster
from tokenmill.pipeline.flow import local
from tokenmill.pipeline.flow.flow import Containers, Flow, Reject, Sink
from tokenmill.pipeline.flow.loopback import keep_to_loopback
from tokenmill.pipeline.flow.stalled import watched
from tokenmill.pipeline.reports.progress import Observer, Progress
from tokenmill.pipeline.reports.terminal import Meter
from tokenmill.pipeline.run.pools import Machines, PhaseStages, groups, lack

_LOCAL_CONTAINER_BYTES = 64 << 20  # of tars and tables: their rows are not known before they are read


class Workers:
    """Use it in `with`."""

    def __init__(self, config: Cluster, run_id: str = ""):
        self._config, self._stack, self._run_id = config, ExitStack(), run_id
        self._metrics: Observer | None = None
        self._others: list[Callable[[], str]] = []
        self._flow: Flow | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start_ray(self) -> None:
        """Ray, where it is not up."""
        keep_to_loopback(self._config.address)
        from tokenmill.pipeline.flow.on_ray import cluster  # its import takes a second

        self._stack.enter_context(cluster(self._config))

    def observe(self, progress: Progress) -> None:
        """Show it to whoever scrapes Ray, where it is up."""
        if self._metrics is None:
            ray = sys.modules.get("ray")
            if ray is None or not ray.is_initialized():
                return
            from tokenmill.pipeline.flow.metrics import Metrics

            self._metrics = Metrics(self._run_id)
        self._metrics(progress)

    def machines(self) -> Machines:
        """What pools may take: of the cluster, where one is up."""
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return self._here()
        from tokenmill.pipeline.flow import nodes

        have, is_cluster = ray.cluster_resources(), self._config.address is not None
        are_awaited = is_cluster and nodes.may_come(self._config)
        return Machines(have.get("CPU", 0.0), have.get("GPU", 0.0), is_cluster, are_awaited)

    def _here(self) -> Machines:
        return Machines(local.num_cpus(self._config.num_cpus), 0.0)

    def run(
        self,
        phase: PhaseStages,
        todo: pa.Table,
        key: str,
        sink: Sink,
        meter: Meter,
        reject: Reject,
        containers: Containers | None = None,
        commit_every_s: float | None = None,
    ) -> None:
        """Send `todo` through the stages of `phase` into `sink` (pipeline/flow/flow.py), committed as often as is said,
        null: as the config says. Raises what a stage raised, and PlanError when the pools do not fit.
        """
        is_little = self.is_little(phase, todo)
        if not is_little:
            self.start_ray()
        have = self._here() if is_little else self.machines()
        every_s = min(commit_every_s or self._config.commit_every_s, self._config.commit_every_s)
        config = self._config.model_copy(update={"commit_every_s": every_s})
        made = groups(phase, have)
        if (waits := lack(made, have)) is not None:
            meter.note(waits)
        flow = self._flow = Flow(made, todo, key, sink, config, meter, reject, containers)
        try:
            if is_little:
                self._stack.enter_context(local.local_workers()).run(flow)
                return
            from tokenmill.pipeline.flow import on_ray

            on_ray.run(flow)
        finally:
            self._flow = None

    def watching(self, meter: Meter) -> AbstractContextManager[None]:
        """While inside, a phase without a result says what it waits for."""
        return watched(meter, self._config.stall_s, self._waits)

    @contextmanager
    def waiting_for(self, waits: Callable[[], str]) -> Iterator[None]:
        """While inside, that word is said with what the workers wait for."""
        self._others.append(waits)
        try:
            yield
        finally:
            self._others.remove(waits)

    def _waits(self) -> str:
        """What the work at hand waits for, in words."""
        return "; ".join([self._waits_here(), *(waits() for waits in list(self._others))])

    def _waits_here(self) -> str:
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return "processes of this machine are at work" if self._flow else "nothing is at work yet"
        from tokenmill.pipeline.flow.waits import waits_of

        return waits_of(self._flow.groups if self._flow else [])

    def is_little(self, phase: PhaseStages, todo: pa.Table) -> bool:
        """Whether processes of this machine do it, without Ray."""
        if self._config.address is not None or todo.num_rows > self._config.local_rows:
            return False
        if len(phase.pools) > 1 or any(pool.num_gpus for _, pool in phase.pools):
            return False
        if "container" not in todo.schema.names:
            return True
        sizes = todo.filter(pc.is_valid(todo["container"]))["size_bytes"]
        return (pc.sum(sizes).as_py() or 0) <= _LOCAL_CONTAINER_BYTES
