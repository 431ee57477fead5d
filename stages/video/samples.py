"""Frames of a video at a steady rate -> their scores and the motion between them.

Flow is OpenCV's DIS (preset FAST) at a shorter edge of 256 px: mean magnitude / shorter edge, the score of Emu3 2.1.
DIS takes 3 ms a pair at 455 x 256 and was within 1 % on shifts of up to 20 px; Farneback takes 30 ms and finds 70 to
90 % of them.
"""

import tempfile
from dataclasses import dataclass

import cv2
import numpy as np
from av.video.frame import VideoFrame

from tokenmill.stages.image.measures import SCORING_PX, PictureScores, measure
from tokenmill.stages.video.decode import Video
from tokenmill.storage import scratch

_MIN_FLOW_PX = 32  # OpenCV's DIS reads out of bounds on elongated frames below this
_KEPT_IN_MEMORY = 1 << 26
_KEPT_QUALITY = 95


class Kept:
    """Sampled pictures of one video, for the scorers that run once its clips are known.

    As JPEG (about 25 KB each), in a file that leaves memory when it grows: four hours hold 28,800 samples.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_KEPT_IN_MEMORY, dir=scratch.folder())  # noqa: SIM115
        self._spans: list[tuple[int, int]] = []

    def put(self, bgr: np.ndarray) -> int:
        """Keep a uint8 (h, w, 3) BGR picture; returns its number."""
        _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _KEPT_QUALITY])
        start = self._file.seek(0, 2)
        self._file.write(jpeg.tobytes())
        self._spans.append((start, len(jpeg)))
        return len(self._spans) - 1

    def rgb(self, number: int) -> np.ndarray:
        """The picture as uint8 (h, w, 3) RGB."""
        start, size = self._spans[number]
        self._file.seek(start)
        bgr = cv2.imdecode(np.frombuffer(self._file.read(size), np.uint8), cv2.IMREAD_COLOR)
        assert bgr is not None
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        """Free the space."""
        self._file.close()


@dataclass
class Sample:
    """Scores of one sampled frame; `flow` is that since the sample before it (null: there is none to compare with),
    `kept` the number of its picture.
    """

    time_s: float
    scores: PictureScores
    flow: float | None
    kept: int | None = None


class Sampler:
    """Scores frames at `fps` by presentation time, starting anew at each cut so that every scene has a sample."""

    def __init__(self, video: Video, fps: float, kept: Kept | None = None):
        self._kept = kept
        self._shrink, self._turns = video.shrinker(SCORING_PX), video.quarter_turns
        self._fps, self._flow = fps, cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._anchor_s = self._next_s = self._last_s = 0.0
        self._last_luma: np.ndarray | None = None

    def take(self, time_s: float, frame: VideoFrame, is_cut: bool) -> list[Sample]:
        """The sample of this frame, if one is due."""
        if is_cut:
            self._anchor_s, self._last_luma = time_s, None
        elif time_s < self._next_s:
            return []
        steps = np.floor((time_s - self._anchor_s) * self._fps + 1e-6) + 1
        self._next_s = float(self._anchor_s + steps / self._fps) - 1e-6
        bgr = np.ascontiguousarray(np.rot90(self._shrink(frame), self._turns))
        luma = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
        scores, flow = measure(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)), self._flow_since_last(time_s, luma)
        sample = Sample(time_s, scores, flow, self._kept.put(bgr) if self._kept else None)
        self._last_luma, self._last_s = luma, time_s
        return [sample]

    def _flow_since_last(self, time_s: float, luma: np.ndarray) -> float | None:
        """Mean magnitude / shorter edge, per sampling period: frames do not fall on the sampling grid."""
        if self._last_luma is None or min(luma.shape) < _MIN_FLOW_PX:
            return None
        vectors = self._flow.calc(self._last_luma, luma, None)  # type: ignore[call-overload]
        magnitude = float(cv2.magnitude(vectors[..., 0], vectors[..., 1]).mean())
        return magnitude / min(luma.shape) / ((time_s - self._last_s) * self._fps)
