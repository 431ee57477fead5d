"""One curated file -> the files of its export: an image as it is, a video as one file for each of its clips.

Rows are dicts with PLACES, fps and `file`, the name to write. Returns the rows that failed, with the reason.
"""

import io
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import numpy as np

from tokenmill import stages, storage
from tokenmill.storage.identity import content_id

_CLOCK = Fraction(1, 90_000)
_MAX_PIXELS = 400_000_000


def copy_image(rows: list[dict[str, Any]], out: str, places: stages.Places) -> list[tuple[dict[str, Any], str]]:
    """The bytes of one file, under the name of each of its rows."""
    content = places.read(rows[0])
    if content_id([content]) != rows[0]["file_id"]:
        return [(row, "changed: refresh the sources") for row in rows]
    for row in rows:
        storage.write_bytes(storage.join(out, row["file"]), content)
    return []


def cut_clips(rows: list[dict[str, Any]], out: str, places: stages.Places) -> list[tuple[dict[str, Any], str]]:
    """All clips of one file in one decode."""
    rows = sorted(rows, key=lambda row: row["start_s"])
    with places.local_file(rows[0]) as path:
        if content_id(storage.read_chunks(path)) != rows[0]["file_id"]:
            return [(row, "changed: refresh the sources") for row in rows]
        waiting, open_ = list(rows), None
        with stages.Video(path, _MAX_PIXELS) as video:
            try:
                for time_s, frame in video.frames():
                    if open_ is not None and time_s >= open_.end_s - 1e-6:
                        storage.write_bytes(storage.join(out, open_.row["file"]), open_.close())
                        open_ = None
                    if open_ is None and waiting and time_s >= waiting[0]["start_s"] - 1e-6:
                        open_ = _Writer(waiting.pop(0))
                    if open_ is not None:
                        open_.add(time_s, video.upright(frame))
            except stages.BrokenVideoError:
                pass  # curate kept what stands before the damage
        if open_ is not None:
            storage.write_bytes(storage.join(out, open_.row["file"]), open_.close())
    return [(row, "no frame at its time") for row in waiting]


class _Writer:
    """One clip being encoded: H.264 where this build of PyAV can, else MPEG-4 part 2."""

    def __init__(self, row: dict[str, Any]):
        self.row, self.end_s = row, row["end_s"]
        self._times: list[float] = []
        self._file = io.BytesIO()
        self._container = av.open(self._file, "w", format="mp4")
        self._stream: Any = None

    def add(self, time_s: float, rgb: np.ndarray) -> None:
        """One more frame, uint8 (H, W, 3); an odd last row or column is left out, as the codecs ask."""
        height, width = (side // 2 * 2 for side in rgb.shape[:2])
        if self._stream is None:
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            rate = Fraction(self.row["fps"] or 25).limit_denominator(1001)
            self._stream = self._container.add_stream(codec, rate=rate)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
            self._stream.options = {"crf": "14"} if codec == "libx264" else {"qscale": "2"}
            self._stream.codec_context.time_base = _CLOCK
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[:height, :width]), format="rgb24")
        frame.pts, frame.time_base = round((time_s - self.row["start_s"]) / _CLOCK), _CLOCK
        self._times.append(time_s)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> bytes:
        """The file."""
        assert all(a < b for a, b in pairwise(self._times))
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._file.getvalue()
