"""A medium -> the pictures that a model sees: an image, or evenly spaced frames of a clip, within so many pixels."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from math import ceil, sqrt
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from tokenmill import storage
from tokenmill.stages.image.pixels import Picture
from tokenmill.stages.read.media_bytes import Places
from tokenmill.stages.table import limits
from tokenmill.stages.table.rows import RowError, unreadable
from tokenmill.stages.video.decode import Video
from tokenmill.stages.video.frames import frames_at
from tokenmill.storage.identity import clip_id, content_id

_MAX_DECODED_PIXELS = 100_000_000  # of an image or a frame, as where they are tokenized


class Pictures:
    """Opens media one after the other. The last video stays open: its clips come one after the other."""

    def __init__(self, fetched: str, max_pixels: int, num_frames: int, max_frame_pixels: int):
        self._places = Places(fetched)
        self._max_pixels, self._num_frames, self._max_frame_pixels = max_pixels, num_frames, max_frame_pixels
        self._last: tuple[tuple[str, str | None], str, str] | None = None  # place, local path, identity
        self._closing = ExitStack()  # removes its temporary copy

    def of(self, medium: dict[str, Any], span: tuple[float, float] | None = None) -> list[np.ndarray]:
        """uint8 (H, W, 3) RGB, of a clip from `span` of it. Raises RowError: unreadable, changed, and what Picture and
        Video raise.
        """
        try:
            if medium["kind"] == "video":
                return self._clip(medium, *(span or (medium["start_s"], medium["end_s"])))
            return [self._image(medium)]
        except (OSError, pa.ArrowException) as error:
            raise unreadable(error) from error

    def _image(self, medium: dict[str, Any]) -> np.ndarray:
        content = self._places.read(medium)
        if content_id([content]) != medium["media_id"]:
            raise _changed()
        picture = Picture(content, _MAX_DECODED_PIXELS)
        width, height = fitted(picture.width_px, picture.height_px, self._max_pixels)
        return resized(picture.rgb(min(width, height)), self._max_pixels)

    def _clip(self, medium: dict[str, Any], start_s: float, end_s: float) -> list[np.ndarray]:
        path, file_id = self._local(medium)
        if clip_id(file_id, medium["start_s"], medium["end_s"]) != medium["media_id"]:
            raise _changed()
        found = []
        with Video(path, _MAX_DECODED_PIXELS) as video:
            for frame in frames_at(video, frame_times(start_s, end_s, self._num_frames)):
                limits.beat()
                found.append(resized(video.upright(frame), self._max_frame_pixels))
        return found

    def _local(self, medium: dict[str, Any]) -> tuple[str, str]:
        place = medium["uri"], medium["member"]
        if self._last is None or self._last[0] != place:
            self._closing.close()
            self._last = None
            path = self._closing.enter_context(self._places.local_file(medium))
            self._last = place, path, content_id(_with_beats(storage.read_chunks(path)))
        return self._last[1:]


def _with_beats(chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        limits.beat()
        yield chunk


def frame_times(start_s: float, end_s: float, count: int) -> list[float]:
    """The middles of `count` equal parts of a clip."""
    return [start_s + (end_s - start_s) * (i + 0.5) / count for i in range(count)]


def spans(start_s: float, end_s: float, max_span_s: float) -> list[tuple[float, float]]:
    """A clip as even spans of at most `max_span_s`, and of more than half of it where there are several."""
    count = max(1, ceil((end_s - start_s) / max_span_s - 1e-9))
    edges = [start_s + (end_s - start_s) * i / count for i in range(count)] + [end_s]
    return list(pairwise(edges))


def fitted(width_px: int, height_px: int, max_pixels: int) -> tuple[int, int]:
    """The size of at most `max_pixels` at the same aspect; never larger than it is."""
    scale = min(1.0, sqrt(max_pixels / (width_px * height_px)))
    return max(1, int(width_px * scale)), max(1, int(height_px * scale))


def resized(pixels: np.ndarray, max_pixels: int) -> np.ndarray:
    """The picture at its fitted size."""
    size = fitted(pixels.shape[1], pixels.shape[0], max_pixels)
    if size == (pixels.shape[1], pixels.shape[0]):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def _changed() -> RowError:
    return RowError("changed", "the file is no longer the one that was curated; refresh the sources")
