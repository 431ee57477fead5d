"""Which documents are held out of training for validation, by a hash of their own id and nothing else.

So no document moves between the two when a refresh brings others, whatever the seed, and those held out of one training
of a corpus are held out of all of them; a larger share holds out the same and more. What belongs together goes
together: the pieces of a text, a dialogue and its medium, and the media of one family (clips of one video, copies that
the catalog knows), which is decided by the family's id. A held-out medium that looks like one that is trained on is
left out of both: it would flatter the validation, and it teaches nothing that the other does not.
"""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import pyarrow as pa

FAMILIES = pa.schema(
    [
        ("media", pa.uint64()),  # key of a medium, rising
        ("family", pa.uint64()),  # of the family that decides for it; its own, where it is in none
        ("is_near", pa.bool_()),  # like a medium that is trained on
    ]
)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Fate(IntEnum):
    """What becomes of a document."""

    TRAINED = 0
    HELD_OUT = 1
    NEAR_TRAINED = 2  # held out, but too like one that is trained on


def is_held_out(families: np.ndarray, share: float) -> np.ndarray:
    """bool (N,): whether documents of these families, uint64 keys (training/data/spoken.py), are held out."""
    state = families + _GOLDEN
    with np.errstate(over="ignore"):
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64) / float(1 << 53) < share


@dataclass(frozen=True)
class HeldOut:
    """A share of the documents, and what the catalog knows of families: rows of FAMILIES; media that it does not name
    are their own.
    """

    share: float
    families: pa.Table = field(default_factory=FAMILIES.empty_table)

    def fates(self, keys: np.ndarray) -> np.ndarray:
        """uint8 (N,), a Fate for each medium, uint64 keys."""
        known, families = (self.families[name].to_numpy() for name in ("media", "family"))
        families = np.append(families, np.uint64(0))
        is_near = np.append(self.families["is_near"].to_numpy(), False)
        at = np.searchsorted(known, keys)
        at[np.append(known, np.uint64(0))[at] != keys] = len(known)
        held = is_held_out(np.where(at < len(known), families[at], keys), self.share)
        return np.where(held, np.where(is_near[at], Fate.NEAR_TRAINED, Fate.HELD_OUT), Fate.TRAINED).astype(np.uint8)
