"""Room for workers that lost their machine: blocks that they hold wait for them, and for nobody else.

Ray Data (2.60) gives each worker two blocks, and Ray holds these for the same actor until it has been started
elsewhere. Where machines are gone and all others are full, that is when the phase has nothing else to do: Ray Data
retires idle workers alone, none is idle while blocks wait, and what would say that a pool is too large never does
(`get_allocation` is what is used and a budget, which is never negative). Meanwhile results that come later in order
wait for those blocks. So, while workers wait for room, their pool gets no new blocks, and as many of its others as wait
are retired when they have done theirs: a pool of a full cluster stands still for one or two blocks.
"""

import time
from typing import Any

import ray
from ray.data import DataContext
from ray.data._internal.actor_autoscaler import ActorPoolScalingRequest, AutoscalingActorPool
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data._internal.execution.interfaces import ReportsExtraResourceUsage

_LOOK_S = 1.0
_PATIENCE_S = 1.5  # with a worker without a place, where a machine died
_START_S = 20.0  # the same where none did: its process is only slow to start, or a surplus worker was faster
_TAKES_EFFECT_S = 5.0  # until a retired worker's place is another's
_CLASS = "MapWorker("  # as Ray Data names the actors of all its pools


def make_room(context: DataContext) -> None:
    """Let pools of this context make room for their workers that lost their machine."""
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, RoomPolicy])


class RoomPolicy(BackpressurePolicy):
    """Asked by Ray Data, in the thread that schedules, whether an operator gets a block."""

    def __init__(self, *of_base: Any):
        super().__init__(*of_base)
        self._looked, self._num_dead = 0.0, _num_dead()
        self._closed: set[Any] = set()  # operators that get no blocks
        self._since: dict[str, float] = {}  # actors without a place, by id
        self._retired: list[float] = []  # when

    def can_add_input(self, op: Any) -> bool:
        """Not while workers of its pool wait for the room of others."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_S:
            self._looked = now
            self._look(now)
        return op not in self._closed

    def _look(self, now: float) -> None:
        pools = {op: pool for op in self._topology for pool in op.get_autoscaling_actor_pools()}
        self._closed = set()
        # Results that went with a machine are made again by their old workers, also those that the pool has retired.
        again = {
            op for op in pools if isinstance(op, ReportsExtraResourceUsage) and not op.extra_resource_usage().is_zero()
        }
        wanting = [op for op, pool in pools.items() if pool.num_restarting_actors() or op in again]
        num_waiting = self._num_waiting(now) if wanting else 0
        self._retired = [at for at in self._retired if now - at < _TAKES_EFFECT_S]
        for op in wanting:
            wanted = num_waiting if op in again else min(num_waiting, pools[op].num_restarting_actors())
            num_waiting -= wanted
            if wanted:
                giver = self._giver(op, pools)
                self._closed |= {op, giver}
                self._retire(pools[giver], wanted - len(self._retired), now)

    def _num_waiting(self, now: float) -> int:
        """Workers that were without a place when this looked before, and are."""
        job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
        found = ray._private.state.actors(job_id=job, actor_state_name="RESTARTING")
        ids = [
            name
            for name, actor in found.items()
            if actor["ActorClassName"].startswith(_CLASS) and not actor["Address"]["IPAddress"]
        ]
        self._since = {name: self._since.get(name, now) for name in ids}
        patience_s = _PATIENCE_S if _num_dead() > self._num_dead else _START_S
        return sum(now - since >= patience_s for since in self._since.values())

    @staticmethod
    def _giver(op: Any, pools: dict[Any, AutoscalingActorPool]) -> Any:
        """The operator whose workers have the room: this one, or another where no worker of this one has any."""
        needs, own = pools[op].per_actor_resource_usage(), pools[op]
        if own.num_alive_actors() + own.num_pending_actors():
            return op
        others = [
            each
            for each, pool in pools.items()
            if pool.num_alive_actors() > 1 and needs.satisfies_limit(pool.per_actor_resource_usage())
        ]
        return max(others, key=lambda each: pools[each].num_alive_actors(), default=op)

    def _retire(self, pool: AutoscalingActorPool, count: int, now: float) -> None:
        """At most `count` that have nothing to do, and those that have no place yet: they would take it."""
        num_pending = pool.num_pending_actors()
        delta = num_pending + max(0, min(count, pool.num_idle_actors()))
        if delta:
            why = "room for workers that lost their machine"
            done = pool.scale(ActorPoolScalingRequest.downscale(delta=-delta, force=True, reason=why)) or 0
            self._retired += [now] * (-done - num_pending)


def _num_dead() -> int:
    """Machines of the cluster that died."""
    return sum(not node["Alive"] for node in ray.nodes())
