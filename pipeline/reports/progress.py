"""How far a phase is, as numbers: what `status --watch`, metrics and JSON lines are made of."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Progress:
    """A moment of a phase. `done` of `total` units are through (total 0: not known); verdicts are of rows as judged,
    `unwritten` of them not committed yet; `numbers` are the phase's own, of a training its losses by name.
    """

    phase: str
    unit: str
    done: int = 0
    total: int = 0
    num_kept: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    unwritten: int = 0
    num_lost: int = 0  # rows that went with a worker that died, and were tried again
    rate: float | None = None  # units a second, once it means something
    left_s: float | None = None
    silent_s: float = 0.0  # since the last result
    numbers: Mapping[str, float] = field(default_factory=dict)
    line: str = ""  # the same for a person

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


Observer = Callable[[Progress], None]
