"""A medium, read where it is -> a small WebP; a clip -> one that moves. Nothing of the file but its pixels is in it.

What cannot be read or drawn has none: that is often why it was rejected.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from tokenmill import stages

_MAX_PIXELS = 400_000_000
_QUALITY = 55
_MOVING_MS = 160  # a frame of a preview


class Previews:
    """Of one catalog's media; of one thread. `fetched`: the folder with what URLs gave."""

    def __init__(self, fetched: str):
        self._places = stages.Places(fetched)

    def still(self, row: Mapping[str, Any], side_px: int) -> bytes | None:
        """WebP of a row of `media`, at most `side_px` long; of a clip its middle frame. Null where there is none."""
        frames = self._frames(row, side_px, 1)
        return None if frames is None else webp(frames[:1])

    def moving(self, row: Mapping[str, Any], side_px: int, num_frames: int) -> bytes | None:
        """WebP of a clip that plays `num_frames` frames of it, over and over; of a picture a still."""
        frames = self._frames(row, side_px, num_frames)
        return None if frames is None else webp(frames)

    def _frames(self, row: Mapping[str, Any], side_px: int, num_frames: int) -> list[np.ndarray] | None:
        try:
            if row["kind"] == "video":
                return [_small(frame, side_px) for frame in self._clip(row, num_frames)]
            if row["kind"] == "image":
                return [_small(stages.Picture(self._places.read(row), _MAX_PIXELS).rgb(at_least_px=side_px), side_px)]
        except (stages.RowError, OSError, ValueError, pa.ArrowException):
            return None
        return None

    def _clip(self, row: Mapping[str, Any], num_frames: int) -> list[np.ndarray]:
        start_s, end_s = row["start_s"], row["end_s"]
        if start_s is None or end_s is None:
            raise ValueError("no span")
        times_s = [start_s + (end_s - start_s) * (number + 0.5) / num_frames for number in range(num_frames)]
        with self._places.local_file(row) as path, stages.Video(path, _MAX_PIXELS) as video:
            return [video.upright(frame) for frame in stages.frames_at(video, times_s)]


def webp(frames: list[np.ndarray]) -> bytes:
    """Frames uint8 (H, W, 3) RGB -> one file; more than one play."""
    first, *more = (Image.fromarray(frame) for frame in frames)
    file = io.BytesIO()
    moving: dict[str, Any] = {"save_all": True, "append_images": more, "duration": _MOVING_MS, "loop": 0}
    first.save(file, "webp", quality=_QUALITY, method=4, **(moving if more else {}))
    return file.getvalue()


def _small(rgb: np.ndarray, side_px: int) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    picture.thumbnail((side_px, side_px), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(picture)
