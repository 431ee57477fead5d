"""Workers that lost their machine get the room of others: pools as Ray Data has them, without Ray."""

from types import SimpleNamespace

import pytest
from ray.data._internal.execution.interfaces import ExecutionResources

from tokenmill.pipeline.flow import room
from tokenmill.pipeline.flow.room import RoomPolicy


class Pool:
    """`active` workers have blocks, and those that restart."""

    def __init__(self, active: int, idle: int = 0, pending: int = 0, restarting: int = 0, gpus: float = 0.0):
        self.active, self.idle, self.pending, self.restarting = active, idle, pending, restarting
        self._each = ExecutionResources(cpu=1.0, gpu=gpus)

    def num_alive_actors(self) -> int:
        return self.active + self.idle

    def num_idle_actors(self) -> int:
        return self.idle

    def num_pending_actors(self) -> int:
        return self.pending

    def num_restarting_actors(self) -> int:
        return self.restarting

    def per_actor_resource_usage(self) -> ExecutionResources:
        return self._each

    def scale(self, request) -> int:
        assert request.delta < 0 and request.force
        pending = min(self.pending, -request.delta)
        idle = min(self.idle, -request.delta - pending)
        self.pending, self.idle = self.pending - pending, self.idle - idle
        return -pending - idle


class Operator:
    """Has one pool."""

    def __init__(self, pool: Pool):
        self._pool = pool

    def get_autoscaling_actor_pools(self) -> list[Pool]:
        return [self._pool]


class Cluster:
    """Pools, asked as Ray Data would, at seconds that the test says."""

    def __init__(self, monkeypatch, *pools: Pool):
        self.ops = [Operator(pool) for pool in pools]
        self._now, self.nodes, self.waiting = 100.0, [{"Alive": True}, {"Alive": False}], 0
        monkeypatch.setattr(room.time, "monotonic", lambda: self._now)
        state = SimpleNamespace(state=SimpleNamespace(actors=self._actors))
        context, job = SimpleNamespace(get_job_id=lambda: "job"), SimpleNamespace(from_hex=lambda name: name)
        ray = SimpleNamespace(_private=state, get_runtime_context=lambda: context, JobID=job)
        ray.nodes = lambda: self.nodes
        monkeypatch.setattr(room, "ray", ray)
        self.policy = RoomPolicy(None, self.ops, None)

    def take(self, passed_s: float) -> list[bool]:
        """Which pools get blocks after so many seconds, with a look each second."""
        for _ in range(round(passed_s)):
            self._now += 1.0
            taken = [self.policy.can_add_input(op) for op in self.ops]
        return taken

    def _actors(self, job_id, actor_state_name):
        def actor(name: str, address: str):
            return {"ActorClassName": name, "Address": {"IPAddress": address, "NodeID": "any"}}

        assert (job_id, actor_state_name) == ("job", "RESTARTING")
        ours = {f"ours {number}": actor("MapWorker(MapBatches(_Worker))", "") for number in range(self.waiting)}
        return {**ours, "starts": actor("MapWorker(MapBatches(_Worker))", "10.0.0.1"), "other": actor("Train", "")}


def test_idle_workers_and_those_that_have_no_place_make_room(monkeypatch):
    pool = Pool(active=3, pending=4, restarting=2)
    cluster = Cluster(monkeypatch, pool)
    cluster.waiting = 2
    cluster.nodes.append({"Alive": False})
    assert cluster.take(2) == [True], "most find a place at once"
    assert (cluster.take(1), pool.pending) == ([False], 0)
    pool.active, pool.idle = 0, 3
    assert (cluster.take(1), pool.idle) == ([False], 1), "as many as wait"
    assert (cluster.take(3), pool.idle) == ([False], 1), "their places are not free at once"
    cluster.waiting, pool.restarting = 0, 2
    assert (cluster.take(1), pool.idle) == ([True], 1), "they have a place, where they are starting"


def test_workers_that_start_again_where_they_were_take_nobodys_room(monkeypatch):
    pool = Pool(active=2, idle=2, pending=1, restarting=1)
    cluster = Cluster(monkeypatch, pool)
    assert (cluster.take(20), pool.idle, pool.pending) == ([True], 2, 1)


def test_where_no_machine_died_a_worker_has_time_to_start(monkeypatch):
    pool = Pool(active=2, idle=1, restarting=1)
    cluster = Cluster(monkeypatch, pool)
    cluster.waiting = 1
    assert (cluster.take(20), pool.idle) == ([True], 1)
    assert (cluster.take(2), pool.idle) == ([False], 0)


@pytest.mark.parametrize("gpus, left", [(0.0, 1), (1.0, 3)])
def test_a_pool_without_any_worker_gets_the_room_of_another_that_has_it(monkeypatch, gpus, left):
    lost, other = Pool(active=0, restarting=2, gpus=gpus), Pool(active=0, idle=3)
    cluster = Cluster(monkeypatch, lost, other)
    cluster.waiting = 2
    cluster.nodes.append({"Alive": False})
    assert cluster.take(3) == [False, gpus > 0]
    assert other.idle == left
