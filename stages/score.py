"""Score still images: bytes -> size, sharpness, luminance, contrast, colourfulness, perceptual hash.

One decode per image serves every score. A large JPEG is decoded by libjpeg at a reduced size that still has twice the
scoring size (512 px on the shorter edge); then all pictures are area-averaged to a shorter edge of 256 px, so that a
score does not depend on the resolution. Emu3 2.1 drops below 512 x 512 and on aesthetics; rules read these columns.
"""

from typing import Any

import cv2
import pyarrow as pa
from pydantic import Field

from stages.columns import MEDIA
from stages.measures import SCORING_PX, measure
from stages.pixels import Picture
from stages.rows import RowError, pick, replace, values_of
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
    """Images with `content` -> their size and scores. `content` is dropped.

    Costs one decode per image (about 2 ms for 0.4 megapixels). Rejects: corrupt (damaged or truncated),
    too_many_pixels (by the header, before decoding), animated, unsupported_format.
    """

    reads = pa.schema([*pick(MEDIA, "kind", "reject_reason", "reject_detail"), ("content", pa.large_binary())])
    writes = pick(
        MEDIA,
        *("width_px", "height_px", "num_frames"),
        *("aspect", "sharpness", "luminance", "contrast", "colourfulness", "phash"),
        *("reject_reason", "reject_detail"),
    )
    drops = ("content",)
    rows = "same"

    def __init__(self, config: ScoreImagesConfig):
        self._config = config
        cv2.setNumThreads(1)  # one worker is one core; OpenCV would take them all

    def __call__(self, table: pa.Table) -> pa.Table:
        values = values_of(table, self.writes)
        kinds = table["kind"].to_pylist()
        for i, content in enumerate(table["content"]):
            if kinds[i] != "image" or values["reject_reason"][i] is not None:
                continue
            try:
                found = self._score(memoryview(content.as_buffer()))
            except RowError as rejected:
                found = rejected.columns
            for name, value in found.items():
                values[name][i] = value
        return replace(table, self.writes, values, self.drops)

    def _score(self, content: memoryview) -> dict[str, Any]:
        picture = Picture(content, self._config.max_pixels)
        size: dict[str, Any] = {
            "width_px": picture.width_px,
            "height_px": picture.height_px,
            "num_frames": picture.num_frames,
        }
        size["aspect"] = max(picture.width_px, picture.height_px) / min(picture.width_px, picture.height_px)
        try:
            rgb = picture.rgb(at_least_px=2 * SCORING_PX)
        except RowError as rejected:
            rejected.columns.update(size)
            raise
        return {**size, **measure(rgb)._asdict()}
