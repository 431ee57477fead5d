"""What is held between rounds, and whether it grew."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

WARM_UP = 3  # rounds: one of each kind; imports, pools of memory and of threads come with the first
ENOUGH = WARM_UP + 3  # rounds, to judge these
SLACK = {"memory_mb": 30.0, "descriptors": 4, "threads": 4}  # caches of allocators, pools of connections
LEFT_BY_RAY = (
    3  # descriptors of each of its lives in one process: ray.init and ray.shutdown leave a socket to each node
)
NOTHING = ("shared_memory_bytes", "temporary_files", "processes_left")  # there may be none between rounds


@dataclass(frozen=True)
class Sample:
    """Of the process that completes every round, and of the machine, when nothing is at work."""

    number: int
    memory_mb: float
    descriptors: int
    threads: int
    rays: int  # lives of Ray in it so far
    shared_memory_bytes: int
    temporary_files: int
    processes_left: int


def growth(samples: Sequence[Sample]) -> dict[str, float | None]:
    """By how much each figure grew, null where it did not: of NOTHING the most there was; of the others, where it is
    beyond SLACK, the median of the last third of the rounds less that of the first third, the warm-up left out.
    """
    found: dict[str, float | None] = {}
    warm = samples[WARM_UP:] if len(samples) >= ENOUGH else []
    third = max(1, len(warm) // 3)
    for name, slack in SLACK.items():
        left = LEFT_BY_RAY if name == "descriptors" else 0
        values = [getattr(sample, name) - left * sample.rays for sample in warm]
        grew = median(values[-third:]) - median(values[:third]) if values else 0.0
        found[name] = grew if grew > slack else None
    return found | {name: max((getattr(sample, name) for sample in samples), default=0) or None for name in NOTHING}
