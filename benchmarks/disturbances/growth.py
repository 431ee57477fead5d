"""What is held between rounds, and whether it grew."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

WARM_UP = 3  # rounds: one of each kind; imports, pools of memory and of threads come with the first
MIN_ROUNDS = 3  # after these
SLACK = {"memory_mb": 30.0, "descriptors": 4, "threads": 4}  # caches of allocators, pools of connections


@dataclass(frozen=True)
class Sample:
    """Of the process that completes every round, and of the machine, when nothing is at work."""

    number: int
    memory_mb: float
    descriptors: int
    threads: int
    shared_memory_bytes: int
    temporary_files: int
    processes_left: int


def growth(samples: Sequence[Sample]) -> dict[str, float | None]:
    """By how much each figure grew: the median of the last third of the rounds less that of the first third, the
    warm-up left out. Null where it did not grow beyond SLACK.
    """
    found: dict[str, float | None] = {}
    warm = samples[min(WARM_UP, max(0, len(samples) - MIN_ROUNDS)) :]
    third = max(1, len(warm) // 3)
    for name in ("memory_mb", "descriptors", "threads", "shared_memory_bytes", "temporary_files", "processes_left"):
        values = [getattr(sample, name) for sample in warm]
        grew = median(values[-third:]) - median(values[:third]) if values else 0
        found[name] = grew if grew > SLACK.get(name, 0) else None
    return found
