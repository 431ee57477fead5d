"""What a training is asked from outside while it runs: to save now, because a machine goes away, or to save and stop.

The driver, which hears of signals, and Ray Train's controller, which hears of machines, write on a board; the first
worker reads it, and all of them act after the same step.
"""

import asyncio
import threading
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tokenmill.training.job import Asked


class _Board:
    """An actor."""

    def __init__(self) -> None:
        self._asked: list[Asked] = []
        self._news, self._stopped = asyncio.Condition(), asyncio.Event()

    async def ask(self, what: Asked) -> None:
        async with self._news:
            self._asked.append(what)
            self._news.notify_all()

    async def next(self, num_read: int) -> list[Asked]:
        """All that was asked, once it is more than that."""
        async with self._news:
            await self._news.wait_for(lambda: len(self._asked) > num_read)
        return self._asked

    async def say_stopped(self) -> None:
        self._stopped.set()

    async def stopped(self) -> None:
        await self._stopped.wait()


def open_board() -> Any:
    """A board on this machine, which ends with this process."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()


class Reader:
    """Reads a board in a thread of its own."""

    def __init__(self, board: Any):
        self._board, self._asked = board, Asked.NOTHING
        threading.Thread(target=self._read, name="notices", daemon=True).start()

    def take(self) -> Asked:
        """What was asked since the last call."""
        asked, self._asked = self._asked, Asked.NOTHING
        return asked

    def say_stopped(self) -> None:
        """The checkpoint is complete."""
        ray.get(self._board.say_stopped.remote())

    def _read(self) -> None:
        num_read = 0
        while True:
            try:
                asked = ray.get(self._board.next.remote(num_read))
            except ray.exceptions.RayError:  # the board ended with the driver, and so will this worker
                return
            self._asked, num_read = max(self._asked, *asked[num_read:]), len(asked)
