"""Contestants that take turns, a step each, so that other work on the machine slows all of them alike.

Each is a function in a thread of its own, which calls `turn(num_tokens)` before each of its steps and goes on when it
is its turn; nothing else runs meanwhile. `Over` is raised in it when enough was seen.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Turn = Callable[[int], None]


class Over(Exception):  # noqa: N818 - no error
    """No more steps are asked for."""


@dataclass
class _Contestant:
    run: Callable[[Turn], None]
    may_go: threading.Event = field(default_factory=threading.Event)
    is_back: threading.Event = field(default_factory=threading.Event)
    is_over: bool = False
    num_tokens: int = 0
    error: BaseException | None = None
    rates: list[float] = field(default_factory=list)

    def turn(self, num_tokens: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the step before is over when all that it asked for is
        self.num_tokens = num_tokens
        self.is_back.set()
        self.may_go.wait()
        self.may_go.clear()
        if self.is_over:
            raise Over

    def whole(self) -> None:
        try:
            self.run(self.turn)
            self.error = RuntimeError("it ended before its steps were over")
        except Over:
            pass
        except BaseException as error:
            self.error = error
        self.is_back.set()

    def wait(self) -> None:
        self.is_back.wait()
        self.is_back.clear()
        if self.error:
            raise self.error

    def step(self, is_counted: bool) -> None:
        num_tokens, started = self.num_tokens, time.perf_counter()
        self.may_go.set()
        self.wait()
        if is_counted:
            self.rates.append(num_tokens / (time.perf_counter() - started))


def in_turns(runs: dict[str, Callable[[Turn], None]], steps: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Tokens per second of each step of each, after `warm_up` that do not count. Raises what a contestant raises."""
    contestants = {name: _Contestant(run) for name, run in runs.items()}
    threads = [threading.Thread(target=each.whole, daemon=True) for each in contestants.values()]
    for thread, each in zip(threads, contestants.values(), strict=True):
        thread.start()
        each.wait()  # one after the other prepares, too
    for number in range(warm_up + steps):
        for each in contestants.values():
            each.step(number >= warm_up)
    for thread, each in zip(threads, contestants.values(), strict=True):
        each.is_over = True
        each.may_go.set()
        thread.join()
    return {name: each.rates for name, each in contestants.items()}
