"""Caption kept media: one row per medium -> its caption, or null where there is none.

A captioner is a class with a name in `captioner` and a `__call__(table) -> list[str | None]`, one entry per row, given
the media (media_id, kind, uri, member, start_s, end_s, source_caption). A model's captioner opens the model in its
`__init__`, in the worker, and reads the pixels itself. Two need no model: the file's own caption, and none.
"""

import re
from typing import Literal, Protocol

import pyarrow as pa
from pydantic import Field

from tokenmill.stages.table.columns import CAPTIONS, TO_CAPTION
from tokenmill.stages.table.rows import pick, replace, values_of
from tokenmill.storage.identity import Config


class Captioner(Protocol):
    """What `Caption` needs of a captioner."""

    captioner: str

    def __call__(self, table: pa.Table) -> list[str | None]:
        """One caption, or null, per row of `table`."""
        ...


class SourceCaptioner:
    """The caption that came with the file; all clips of a video share it."""

    captioner = "source"

    def __call__(self, table: pa.Table) -> list[str | None]:
        return table["source_caption"].to_pylist()


class NoCaptioner:
    """Null for every row: training without text conditions, or a baseline."""

    captioner = "none"

    def __call__(self, table: pa.Table) -> list[str | None]:
        return [None] * table.num_rows


class CaptionConfig(Config):
    """Which captioner, and how long a caption may be."""

    captioner: Literal["source", "none"] = Field(
        default="source",
        description="wrong choice: captions of unknown quality (source), or a model without conditions (none)",
    )
    max_caption_chars: int = Field(
        default=2000,
        gt=0,
        description="too small: long captions end in mid-sentence; too large: the text leaves no room for the codes "
        "(Emu3's first stage: about 950 text tokens beside one 512 x 512 image)",
    )


def tidy(text: str | None, max_chars: int) -> str | None:
    """`text` on one line without control characters, cut at the last word that fits; null when nothing is left."""
    line = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text or "").strip()
    if len(line) > max_chars:
        # One character more, so that a word that ends exactly at the limit stays.
        line = line[: max_chars + 1].rpartition(" ")[0] or line[:max_chars]
    return line or None


class Caption:
    """Kept media -> `caption` and `captioner`. Costs what the captioner costs. A missing caption rejects nothing.

    The caption of a text document is the document, whole, whichever captioner is chosen.
    """

    reads = TO_CAPTION
    writes = pick(CAPTIONS, "caption", "captioner", "reject_reason")
    drops = tuple(name for name in TO_CAPTION.names if name != "media_id")
    rows = "same"

    def __init__(self, config: CaptionConfig):
        self._config = config
        self._captioner: Captioner = SourceCaptioner() if config.captioner == "source" else NoCaptioner()

    def __call__(self, table: pa.Table) -> pa.Table:
        values = values_of(table, self.writes)
        captions = self._captioner(table)
        kinds, sources = table["kind"].to_pylist(), table["source_caption"].to_pylist()
        for i, reason in enumerate(values["reject_reason"]):
            is_text = kinds[i] == "text"
            values["captioner"][i] = SourceCaptioner.captioner if is_text else self._captioner.captioner
            if reason is None:
                values["caption"][i] = sources[i] if is_text else tidy(captions[i], self._config.max_caption_chars)
        return replace(table, self.writes, values, self.drops)
