"""Kept media with captions -> the pairs of a training, opened as they are needed, by as many threads as ask.

This is all that the training knows of a catalog: rows of PLACES with the columns CAPTION, `source_caption`, `metadata`,
and `from_s` and `to_s` of a long clip's span, null of a whole medium.
"""

import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from tokenmill import stages
from tokenmill.pipeline.config import ConfigError
from tokenmill.stages.caption.pictures import Pictures, frame_times
from tokenmill.storage.identity import fingerprint_of
from tokenmill.training.captioner.config import CaptionerTrainConfig
from tokenmill.training.captioner.pairs import Example

CAPTION = "answer"  # the caption to be learned
SAID = ("source_caption", "metadata")
SPAN = ("from_s", "to_s")  # seconds in the file, as start_s and end_s


class CatalogPairs:
    """Rows of a catalog as pairs. A medium that cannot be opened is none, and `left_out` counts it by reason."""

    def __init__(self, config: CaptionerTrainConfig, rows: pa.Table, fetched: str):
        self.rows = rows
        self.left_out: dict[str, int] = {}
        self._config, self._fetched = config, fetched
        self._prompts = prompts(config)
        self._of_thread = threading.local()

    def __len__(self) -> int:
        return self.rows.num_rows

    def texts(self) -> Iterator[str]:
        """All prompts, then all captions in order; no medium is opened."""
        yield from (prompt.text for prompt in self._prompts.values())
        yield from self.rows[CAPTION].to_pylist()

    def load(self, number: int) -> Example | None:
        """The pair, from any thread; null where its medium cannot be opened."""
        (row,) = self.rows.slice(number, 1).to_pylist()
        try:
            pictures = self._pictures().of(row, _span(row))
        except stages.RowError as error:
            reason = str(error.columns["reject_reason"])
            self.left_out[reason] = self.left_out.get(reason, 0) + 1
            return None
        return Example(pictures, self.prompt(row), row[CAPTION])

    def prompt(self, row: dict[str, Any]) -> str:
        """What is asked of a row."""
        times = []
        if (span := _span(row)) is not None:
            times = frame_times(0.0, span[1] - span[0], self._config.ask.num_frames)
        return self._prompts[row["kind"]].filled({**row, "read": None}, times)

    def _pictures(self) -> Pictures:
        if not hasattr(self._of_thread, "pictures"):
            how = self._config.ask
            sizes = how.max_pixels, how.num_frames, how.max_frame_pixels
            self._of_thread.pictures = Pictures(self._fetched, *sizes)
        return self._of_thread.pictures


def _span(row: dict[str, Any]) -> tuple[float, float] | None:
    """Seconds of the clip, or of the part of it, that a row is about; null of an image."""
    if row["kind"] != "video":
        return None
    return (row["start_s"], row["end_s"]) if row["from_s"] is None else (row["from_s"], row["to_s"])


def prompts(config: CaptionerTrainConfig) -> dict[str, stages.Prompt]:
    """What is asked of each kind. Raises PromptError, and ConfigError for a prompt that gives the answer away."""
    found = {"image": stages.load_prompt(config.ask.prompt), "video": stages.load_prompt(config.ask.video_prompt)}
    if config.captions == "source" and any("source_caption" in prompt.slots for prompt in found.values()):
        raise ConfigError(
            "captioner.train.ask: its prompt holds {source_caption}, which is the answer; take another prompt, or the "
            "captions of a captioner"
        )
    return found


def identity(config: CaptionerTrainConfig, rows: pa.Table) -> str:
    """Of all that a training hangs on: config, prompts' texts, first weights, media, captions, and what the prompts say
    of each medium. Raises PromptError, ConfigError and CaptionError.
    """
    asked = prompts(config)
    texts = {"prompt": asked["image"].identity, "video_prompt": asked["video"].identity}
    model = None if config.model is None else stages.model_identity(config.model)
    what = config.model_copy(update={"ask": config.ask.model_copy(update=texts), "model": model})
    said = [name for name in SAID if any(name in each.slots for each in asked.values())]
    return fingerprint_of("captioner", what, [rows[name].to_pylist() for name in ("media_id", CAPTION, *SPAN, *said)])


def tidied(captions: pa.ChunkedArray) -> pa.Array:
    """Each on one line, as the phase caption writes them; null where nothing is left."""
    return pa.array([stages.tidy(text) or None for text in captions.to_pylist()], pa.string())
