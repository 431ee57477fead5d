"""Score still images: bytes -> size, sharpness, luminance, colour, noise, text, perceptual hash.

One decode per image serves every score. A large JPEG is decoded by libjpeg at a reduced size that still has twice the
scoring size (512 px on the shorter edge); then all pictures are area-averaged to a shorter edge of 256 px, so that a
score does not depend on the resolution. Emu3 2.1 drops below 512 x 512 and on aesthetics; rules read these columns.
Text is looked for, and views are made for the scorers that run a model, only where the verdict still hangs on them.
"""

from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from pydantic import Field

from stages import limits
from stages.columns import MEDIA
from stages.lazy import Lazy, add_scored
from stages.measures import SCORING_PX, measure
from stages.pixels import Picture
from stages.rows import RowError, pick, replace, values_of
from stages.text_area import TextConfig, TextDetector
from stages.views import make_view
from tokenizer.identity import Config


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
                *("width_px", "height_px", "num_frames"),
                *("aspect", "sharpness", "luminance", "contrast", "colourfulness", "chroma", "noise", "border"),
                *("jpeg_quality", "phash", "text_area", "text_boxes", "scored", "reject_reason", "reject_detail"),
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
        pictures: dict[int, np.ndarray] = {}
        for i, content in enumerate(table["content"]):
            if kinds[i] != "image" or values["reject_reason"][i] is not None:
                continue
            with limits.medium():
                try:
                    found = self._score(memoryview(content.as_buffer()), pictures, i)
                except RowError as rejected:
                    found = rejected.columns
            for name, value in found.items():
                values[name][i] = value
        for i in self._wanted("text", table, values, pictures):
            with limits.medium():
                values["text_area"][i], values["text_boxes"][i] = self._find_text(pictures[i], self._text_px)
            values["scored"][i] = add_scored(values["scored"][i], self._lazy.name("text") or "text")
        if self._views_px is not None:
            for i in self._wanted("clip", table, values, pictures):
                values["views"][i] = make_view(pictures[i], self._views_px)
        return replace(table, self.writes, values, self.drops)

    def _wanted(
        self, scorer: str, table: pa.Table, values: dict[str, list], pictures: dict[int, np.ndarray]
    ) -> list[int]:
        if self._lazy.name(scorer) is None:
            return []
        wanted = self._lazy.wants(scorer, replace(table, self.writes, values, self.drops))
        return [row for row in pictures if wanted[row]]

    def _score(self, content: memoryview, pictures: dict[int, np.ndarray], row: int) -> dict[str, Any]:
        picture = Picture(content, self._config.max_pixels)
        size: dict[str, Any] = {
            "width_px": picture.width_px,
            "height_px": picture.height_px,
            "num_frames": picture.num_frames,
            "jpeg_quality": picture.jpeg_quality,
        }
        size["aspect"] = max(picture.width_px, picture.height_px) / min(picture.width_px, picture.height_px)
        try:
            rgb = picture.rgb(at_least_px=2 * SCORING_PX)
        except RowError as rejected:
            rejected.columns.update(size)
            raise
        if self._lazy.scorers:
            pictures[row] = self._kept(rgb)
        return {**size, **measure(rgb)._asdict()}

    def _kept(self, rgb: np.ndarray) -> np.ndarray:
        """What later scorers of the batch look at: as large as they need, since a batch of scans would fill memory."""
        shorter_px = max(self._text_px, self._views_px or 0)
        scale = shorter_px / min(rgb.shape[:2])
        if scale > 0.5:
            return rgb
        size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
        return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
