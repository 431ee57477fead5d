"""A line of a plan: what one phase will do for one reason; and the catalog as it will be after the phases before."""

from dataclasses import dataclass, field

import pyarrow as pa

from tokenmill.pipeline.refresh.arrow import NO_IDS


@dataclass(frozen=True)
class Step:
    """What a phase will do, and why."""

    phase: str
    why: str
    num_read: int | None  # files (curate), media or documents (train); null: not known before curate has run
    computes: str = ""
    writes: str = ""


@dataclass(frozen=True)
class Outlook:
    """The catalog as it will be after the phases planned so far, as far as that is known before they run.

    What files that are not read yet hold, nobody knows: media of theirs are `open`, they may be kept or rejected then.
    """

    kept: pa.Array | None = None  # ids of the media that go on; null: as the tables say now
    num_open_files: int = 0
    open: pa.Array = field(default_factory=lambda: NO_IDS)
    recaptioned: pa.Array = field(default_factory=lambda: NO_IDS)  # media whose source caption, or caption, changes
    redescribed: pa.Array = field(default_factory=lambda: NO_IDS)  # media of which the source's metadata change
    captions_change: bool = False  # caption has something to do before
    tokens_change: bool = False

    @property
    def is_now(self) -> bool:
        """Nothing will be other than the tables say."""
        comes = self.num_open_files or self.captions_change or self.tokens_change
        return self.kept is None and not (comes or len(self.recaptioned) or len(self.redescribed))


NOW = Outlook()  # the catalog as it is


def counted(number: int, noun: str) -> str:
    """`1 file`, `2 files`, `2 media`."""
    return f"{number} {noun}{'' if number == 1 or noun == 'media' else 's'}"
