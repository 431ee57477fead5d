"""Score still images: bytes -> size, sharpness, luminance, colour, noise, text, perceptual hash.

One decode per image serves every cheap score. A large JPEG is decoded by libjpeg at the least reduced size that still
has the scoring size; then all pictures are averaged to a shorter edge of 256 px, so that a score does not depend on the
resolution. Emu3 2.1 drops below 512 x 512 and on aesthetics; rules read these columns. Text is looked for, and views
are made for the scorers that run a model, only where the verdict still hangs on them: those images are decoded once
more, larger.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from pydantic import Field

from tokenmill.stages.image.measures import SCORING_PX, PictureScores, measure
from tokenmill.stages.image.pixels import Picture
from tokenmill.stages.image.text_area import TextConfig, TextDetector
from tokenmill.stages.image.views import make_view
from tokenmill.stages.select.expensive import Lazy, add_scored
from tokenmill.stages.table import limits
from tokenmill.stages.table.columns import MEDIA
from tokenmill.stages.table.rows import RowError, pick, replace, values_of
from tokenmill.storage.identity import Config


class ScoreImagesConfig(Config):
    """What is measured of still images."""

    max_pixels: int = Field(
        default=100_000_000,
        gt=0,
        description="too small: large scans are rejected as too_many_pixels; too large: one file can take 7 bytes of "
        "memory per pixel",
    )


class ScoreImages:
    """Images with `content` -> their size and scores, and `views` for model-based scorers. `content` is dropped.

    Costs one decode per image (about 2 ms for 0.4 megapixels), and 0.3 s where text has to be looked for. Rejects:
    corrupt (damaged or truncated), too_many_pixels (by the header, before decoding), animated, unsupported_format.
    """

    reads = pa.schema(
        [*pick(MEDIA, "kind", "scored", "reject_reason", "reject_detail"), pa.field("content", pa.large_binary())]
    )
    writes = pa.schema(
        [
            *pick(
                MEDIA,
                *("width_px", "height_px", "num_frames", "aspect", "jpeg_quality", *PictureScores._fields),
                *("text_area", "text_boxes", "scored", "reject_reason", "reject_detail"),
            ),
            pa.field("views", pa.large_binary()),
        ]
    )
    drops = ("content",)
    rows = "same"

    def __init__(
        self,
        config: ScoreImagesConfig,
        lazy: Lazy | None = None,
        text: TextConfig | None = None,
        views_px: int | None = None,
    ):
        self._config = config
        self._lazy = lazy or Lazy({}, {})
        self._text_px = (text or TextConfig()).image_px
        self._find_text = TextDetector()
        self._views_px = views_px
        cv2.setNumThreads(1)  # one worker is one core; OpenCV would take them all

    def __call__(self, table: pa.Table) -> pa.Table:
        values = values_of(table, self.writes)
        kinds = table["kind"].to_pylist()
        contents: dict[int, memoryview] = {}
        for i, content in enumerate(table["content"]):
            if kinds[i] != "image" or values["reject_reason"][i] is not None:
                continue
            contents[i] = memoryview(content.as_buffer())
            _fill(values, i, partial(self._score, contents[i]))
        for i in self._wanted("text", table, values, contents):
            _fill(values, i, partial(self._text, contents[i], values["scored"][i]))
        if self._views_px is not None:
            for i in self._wanted("clip", table, values, contents):
                _fill(values, i, partial(self._view, contents[i], self._views_px))
        return replace(table, self.writes, values, self.drops)

    def _wanted(
        self, scorer: str, table: pa.Table, values: dict[str, list], contents: dict[int, memoryview]
    ) -> list[int]:
        if self._lazy.name(scorer) is None:
            return []
        wanted = self._lazy.wants(scorer, replace(table, self.writes, values, self.drops))
        return [row for row in contents if wanted[row]]

    def _text(self, content: memoryview, scored: str | None) -> dict[str, Any]:
        found = self._find_text(self._again(content, self._text_px), self._text_px)
        name = self._lazy.name("text") or "text"
        return {"text_area": found.area, "text_boxes": found.boxes, "scored": add_scored(scored, name)}

    def _view(self, content: memoryview, views_px: int) -> dict[str, Any]:
        return {"views": make_view(self._again(content, views_px), views_px)}

    def _again(self, content: memoryview, shorter_px: int) -> np.ndarray:
        return Picture(content, self._config.max_pixels).rgb(at_least_px=shorter_px)

    def _score(self, content: memoryview) -> dict[str, Any]:
        picture = Picture(content, self._config.max_pixels)
        size: dict[str, Any] = {
            "width_px": picture.width_px,
            "height_px": picture.height_px,
            "num_frames": picture.num_frames,
            "jpeg_quality": picture.jpeg_quality,
        }
        size["aspect"] = max(picture.width_px, picture.height_px) / min(picture.width_px, picture.height_px)
        try:
            rgb = picture.rgb(at_least_px=SCORING_PX)
        except RowError as rejected:
            rejected.columns.update(size)
            raise
        return {**size, **measure(rgb)._asdict()}


def _fill(values: dict[str, list], row: int, find: Callable[[], dict[str, Any]]) -> None:
    """Put what `find` finds, or why the row is rejected, in its columns."""
    try:
        with limits.medium(row):
            found = find()
    except RowError as rejected:
        found = rejected.columns
    for name, value in found.items():
        values[name][row] = value
