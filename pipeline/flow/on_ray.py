"""A phase's flow on Ray: rows to do go through pools of stage actors, whose blocks stay where they were made.

The driver holds references to blocks, not their rows; an actor writes the finished blocks as shards. Order is
preserved, so that which of two equal files becomes the medium does not depend on timing. Neighbouring stages with one
pool run in one process and hand tables over in memory: a decoded picture never crosses the object store.
"""

import logging
import os
import socket
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.util.annotations import RayDeprecationWarning

from tokenmill.pipeline.catalog.shard_files import Shard
from tokenmill.pipeline.config import Cluster, ConfigError
from tokenmill.pipeline.flow import alone, nodes, room, writer
from tokenmill.pipeline.flow.flow import Collector, Flow, Group, Sink
from tokenmill.pipeline.flow.metrics import ReadBytes
from tokenmill.pipeline.flow.pool_use import pools_used, running
from tokenmill.stages.table.at_hand import worker_notes
from tokenmill.stages.table.chain import Chain, StageSpec
from tokenmill.stages.table.limits import Limits
from tokenmill.storage import failures, scratch, stopping

# Of a block: a machine that died costs some until Ray knows it, media that hang one each, those that kill two. What
# kills for another reason has a count of its own (`_Worker`).
_RETRIES = 100
_WRITER_RESTARTS = 10  # without a limit, blocks that no memory holds would be tried for ever
_ANSWER_S = 5.0
_KEPT_S = 600  # what a worker had at hand, for the one that takes over
_NEVER = -1.0  # does a pool shrink because it waits for another: its models would be loaded again
_LOOK_S = 5.0  # between looks at who has come
_CONTAINER_BLOCK_BYTES = 1 << 20  # of results, so that a tar's are committed while it is read


class _Worker(Chain):
    """A Chain whose results leave it as they come: one row may be a tar of thousands. When its process dies, Ray starts
    another one of the same name, which finds the note of what was at hand. On another machine it finds none: a lost
    machine accuses no row.
    """

    def __init__(self, stages: Sequence[StageSpec], limited: Limits, phase: str | None = None, notes: str = ""):
        """`phase`: under which what it reads is counted; null in pools after the first. `notes`: their name, where not
        that of the actor.
        """
        self._read = None if phase is None else ReadBytes(phase)
        self._scratch = scratch.claim(_scratch_name(), _KEPT_S)
        folder = os.path.join(self._scratch, notes or ray.get_runtime_context().get_actor_id() or "")
        self._notes = worker_notes(folder)
        super().__init__(stages, limited, self._notes)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:  # type: ignore[override]
        """Raises BlockRefusedError where one more death would only be like those before."""
        scratch.renew(self._scratch)
        with self._notes.block(table):
            yield from self.stream(table)
        if self._read is not None:
            self._read(table)

    def whole(self, table: pa.Table) -> pa.Table:
        """The same as one table, also where workers died over it."""
        return pa.concat_tables(self.stream(table))

    def node(self) -> str:
        """The id of its machine."""
        return ray.get_runtime_context().get_node_id()


class _Writer:
    """The actor that writes shards. An actor and not a task, because Ray ends idle task workers: each shard would wait
    three seconds for a new process.
    """

    def __init__(self, sink: Sink):
        # A writer that dies comes back: a shard half written was never committed, and is written anew.
        actor: Any = ray.remote(writer.ShardWriter).options(
            num_cpus=writer.NUM_CPUS, max_restarts=_WRITER_RESTARTS, max_task_retries=_WRITER_RESTARTS
        )
        self._actor = actor.remote(sink.root, sink.table, sink.constants, sink.keys)
        self._asked: list[Any] = []
        self.limit_s: float | None = None

    def verdicts(self, *blocks: Any) -> dict[str | None, int]:
        self._asked += [self._actor.verdicts.remote(*blocks)] if blocks else []
        if not self._asked:
            return {}
        done, self._asked = ray.wait(self._asked, num_returns=len(self._asked), timeout=0 if blocks else None)
        counts: Counter[str | None] = Counter()
        for each in ray.get(done):
            counts.update(each)
        return dict(counts)

    def write(self, *blocks: Any) -> tuple[Shard, pa.Table]:
        return ray.get(self._actor.write.remote(*blocks), timeout=self.limit_s)

    def rewrite(self, shard: Shard, keep: pa.BooleanArray) -> Shard:
        return ray.get(self._actor.rewrite.remote(shard, keep), timeout=self.limit_s)


@contextmanager
def cluster(config: Cluster) -> Iterator[None]:
    """Ray for the length of a command: an existing cluster, or one started here and ended with the command."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if ray.is_initialized():
        _check_nodes(config)
        yield
        return
    _check(config.address)
    # Without an address Ray joins whatever cluster was started on this machine.
    own: dict[str, Any] = {"address": "local", "num_cpus": config.num_cpus, "include_dashboard": False}
    how = {"address": config.address} if config.address else own
    with _silent_stderr(), stopping.kept():
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **how)
    # No named parameter sets the retries of a task yet, and without a limit a deadly file would be tried for ever.
    warnings.filterwarnings("ignore", category=RayDeprecationWarning)
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.max_errored_blocks = -1
    context.autoscaling_config.actor_pool_util_downscaling_threshold = _NEVER
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0  # blocks for each worker: there is work
    room.make_room(context)
    name = _scratch_name()
    try:
        if config.address:
            nodes.await_nodes(config)
        _check_nodes(config)
        yield
    finally:
        ray.shutdown()
        scratch.sweep(name)


def _check_nodes(config: Cluster) -> None:
    """Of a cluster whose machines others set up; those that came since the last time. Raises NodeError."""
    if config.address:
        nodes.check_nodes(config.nodes.secrets)


def _check(address: str | None) -> None:
    """See in seconds whether anyone answers at HOST:PORT; Ray would try for minutes. Raises ConfigError."""
    host, _, port = (address or "").rpartition(":")
    if not port.isdigit() or "://" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except OSError as error:
        raise ConfigError(f"cluster.address: {address}: {failures.line('no_cluster', error)}") from error


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Ray's C++ core writes about its own log level to file descriptor 2; errors of ray.init are Python exceptions."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _scratch_name() -> str:
    """Of this job on this node."""
    context = ray.get_runtime_context()
    return f"ray-{context.get_node_id()[:16]}-{context.get_job_id()}"


def _worker_options() -> dict[str, Any]:
    return {"max_task_retries": _RETRIES}


def run(flow: Flow) -> None:
    """Send what is to do through the pools into the sink. Ray must be up. Raises what a stage raised."""
    _check_nodes(flow.config)
    if flow.num_containers and len(flow.groups) == 1:
        DataContext.get_current().target_max_block_size = _CONTAINER_BLOCK_BYTES
    blocks = flow.blocks()
    dataset: ray.data.Dataset = ray.data.from_blocks(blocks)  # from_arrow would run a task on the cluster for each
    planned = [min(group.workers, len(blocks)) for group in flow.groups]
    for number, group in enumerate(flow.groups):
        dataset = dataset.map_batches(
            _Worker,
            fn_constructor_args=(group.stages, flow.limits, None if number else flow.meter.report.phase),
            batch_size=None if number == 0 else group.pool.batch_rows,
            batch_format="pyarrow",
            compute=_strategy(group, planned[number], len(blocks)),
            num_cpus=group.pool.num_cpus,
            num_gpus=group.pool.num_gpus,
            ray_remote_args_fn=_worker_options,
        )
    collector = Collector(flow, _Writer(flow.sink))
    with collector.collecting():
        bundles, sizes = running(dataset, planned, any(group.is_on_cluster for group in flow.groups))
        looked = time.monotonic()
        try:
            for bundle in bundles:
                sizes.observe()
                if flow.config.address and time.monotonic() - looked >= _LOOK_S:
                    _check_nodes(flow.config)
                    looked = time.monotonic()
                collector.add(list(bundle.block_refs), bundle.num_rows() or 0)
        finally:
            del bundles  # Ray's executor ends with it; kept by a traceback, that would be after Ray itself
    names = [group.stages[-1][0].__name__ for group in flow.groups]
    flow.meter.busy(pools_used(dataset, names, sizes), collector.seconds)
    with closing(alone.AloneWorkers(flow, _Worker)) as workers:
        collector.retry_lost(workers, ray.put, flow.groups[0].pool.batch_rows)


def _strategy(group: Group, workers: int, num_blocks: int) -> ActorPoolStrategy:
    """On a cluster a pool follows its machines: those that come get workers, as many as there are blocks for."""
    if not group.is_on_cluster:
        return ActorPoolStrategy(size=workers)
    most = max(workers, min(group.pool.workers or num_blocks, num_blocks))
    return ActorPoolStrategy(min_size=1, initial_size=workers, max_size=most)
