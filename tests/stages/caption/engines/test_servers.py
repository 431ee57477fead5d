"""The level of requests in flight finds what a server takes, on a clock of its own."""

import heapq
import itertools
import random

import pytest

from tokenmill.stages.caption.engines import servers
from tokenmill.stages.caption.engines.servers import Level


def rate(monkeypatch: pytest.MonkeyPatch, slots: int, seconds: float, fixed: int | None = None) -> float:
    """Answers a second, in the later half, of a server that works on so many at once, 0.1 s each give or take."""
    clock, drawn = [0.0], random.Random(0)
    monkeypatch.setattr(servers.time, "monotonic", lambda: clock[0])
    level = Level(256)
    free = [0.0] * slots
    ends: list[tuple[float, int]] = []
    numbers, done = itertools.count(), []
    while clock[0] < seconds:
        while len(ends) < (fixed or level.limit):
            start = max(clock[0], heapq.heappop(free))
            end = start + 0.1 * drawn.uniform(0.7, 1.3)
            heapq.heappush(free, end)
            heapq.heappush(ends, (end, next(numbers)))
        clock[0], _ = heapq.heappop(ends)
        done.append(clock[0])
        level.answered(True)
    late = [at for at in done if at > 0.5 * seconds]
    return len(late) / (0.5 * seconds)


@pytest.mark.parametrize("slots", [1, 3, 24, 100])
def test_it_comes_within_a_tenth_of_the_best_fixed_number(slots, monkeypatch):
    best = max(rate(monkeypatch, slots, 60, fixed) for fixed in (slots, 2 * slots, 256))
    assert rate(monkeypatch, slots, 60) >= 0.9 * best


def test_a_cut_counts_once_for_all_that_were_in_flight(monkeypatch):
    clock = [10.0]
    monkeypatch.setattr(servers.time, "monotonic", lambda: clock[0])
    level = Level(64)
    level.limit = 32
    for _ in range(32):
        level.cut()
    assert level.limit == 16
    clock[0] += 2
    level.cut()
    assert level.limit == 8


def test_too_few_requests_raise_nothing():
    level = Level(64)
    for _ in range(1000):
        level.answered(False)
    assert level.limit == 4
