"""Rows that were lost, in workers of their own: whoever dies with them is known, and whether it was their doing."""

import time
import uuid
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tokenmill.pipeline.flow.flow import Flow, Group
from tokenmill.stages.table.at_hand import LIVES

_LOOK_S = 1.0
_STARTS = 5  # of a worker that dies before it has anything to do


@dataclass
class _Lone:
    """A worker, the machine that it is on, and the name under which it notes what it has at hand."""

    actor: Any
    node: str
    notes: str


class AloneWorkers:
    """One worker for each pool, which has one table at a time; call it with a table. Close it."""

    def __init__(self, flow: Flow, worker: type[Any]):
        """`worker`: an actor's class, made from stages, limits, and the name of its notes, with the methods `whole`
        (table to table) and `node` (its machine's id).
        """
        self._flow, self._class = flow, ray.remote(worker)
        self._workers: list[_Lone | None] = [None] * len(flow.groups)

    def __call__(self, table: pa.Table) -> pa.Table | tuple[str, str]:
        """Its result; or reason and detail of the workers that died over it while their machine lived. Raises what a
        stage raised.
        """
        for number in range(len(self._workers)):
            result = self._through(number, table)
            if not isinstance(result, pa.Table):
                return result
            table = result
        return table

    def close(self) -> None:
        """End the workers."""
        for lone in self._workers:
            if lone is not None:
                ray.kill(lone.actor)
        self._workers = [None] * len(self._workers)

    def _through(self, number: int, table: pa.Table) -> pa.Table | tuple[str, str]:
        num_deaths = 0
        while True:
            lone = self._workers[number] or self._started(number, None)
            try:
                return ray.get(lone.actor.whole.remote(table))
            except ActorUnavailableError:  # nobody knows yet whether it or its machine died, or neither
                time.sleep(_LOOK_S)
            except RayActorError as error:
                self._workers[number] = None
                if not _is_alive(lone.node):
                    continue
                num_deaths += 1
                if num_deaths == LIVES:
                    return "worker_died", str(error).splitlines()[0][:300]
                self._started(number, lone)

    def _started(self, number: int, before: _Lone | None) -> _Lone:
        """A worker; after one that died, on the same machine, where its note is."""
        group, notes = self._flow.groups[number], uuid.uuid4().hex if before is None else before.notes
        for left in reversed(range(_STARTS)):
            actor = self._actor(group, notes, before)
            try:
                lone = self._workers[number] = _Lone(actor, ray.get(actor.node.remote()), notes)
                return lone
            except RayActorError as error:
                if error.actor_init_failed or not left:
                    raise
        raise AssertionError

    def _actor(self, group: Group, notes: str, before: _Lone | None) -> Any:
        options: dict[str, Any] = {"num_cpus": group.pool.num_cpus, "num_gpus": group.pool.num_gpus}
        if before is not None and _is_alive(before.node):
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(before.node, soft=True)
        return self._class.options(**options).remote(group.stages, self._flow.limits, notes=notes)


def _is_alive(node: str) -> bool:
    return any(each["NodeID"] == node and each["Alive"] for each in ray.nodes())
