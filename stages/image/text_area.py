"""How much of a picture is text: a text detector's boxes -> share of the area, number of boxes.

Emu3 2.1 names PaddleOCR and gives no threshold; this is its detector as the `rapidocr` wheel carries it (PP-OCRv6
small, ONNX, nothing is downloaded). Only detection runs, no recognition: 0.09 s at a shorter edge of 256 px, 0.34 s at
512.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np
from pydantic import Field

from tokenmill.storage.identity import Config

_MIN_SCORE = 0.6
_MAX_LINE_SHARE = 0.35
_MIN_EDGE_PX = 32  # what the network shrinks to one cell


class TextConfig(Config):
    """How text is looked for."""

    image_px: int = Field(
        default=512,
        ge=64,
        description="Shorter edge of images for detection; too small: fine print is missed; too large: slow",
    )
    video_px: int = Field(
        default=256,
        ge=64,
        description="Shorter edge of frames for detection, at most that of scoring, 256 (Emu3 2.1: 256); too small: "
        "subtitles are missed; too large: slow",
    )


class TextFound(NamedTuple):
    """`area`: share of the picture under text boxes, 0..1; `boxes`: how many there are."""

    area: float
    boxes: int


class TextDetector:
    """The detector, on one core; opens its model (10 MB) when first asked."""

    def __init__(self) -> None:
        self._engine: Any = None

    def __call__(self, rgb: np.ndarray, shorter_px: int) -> TextFound:
        """Text in a uint8 (H, W, 3) RGB picture, looked at with a shorter edge of at most `shorter_px`.

        A box as thick as a third of the picture's shorter edge is not counted: on photographs the detector sometimes
        takes all of an insect or a flower for a line of writing.
        """
        scale = min(1.0, shorter_px / min(rgb.shape[:2]))
        height, width = (max(_MIN_EDGE_PX, round(side * scale)) for side in rgb.shape[:2])
        small = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
        bgr = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
        boxes = self._open()(bgr, use_det=True, use_cls=False, use_rec=False).boxes
        lines = [box for box in (boxes if boxes is not None else []) if _is_line(box, min(height, width))]
        covered = np.zeros((height, width), np.uint8)
        cv2.fillPoly(covered, [np.round(box).astype(np.int32) for box in lines], 1)
        return TextFound(float(covered.mean()), len(lines))

    def _open(self) -> Any:
        if self._engine is None:
            from rapidocr import RapidOCR

            threads = {f"EngineConfig.onnxruntime.{name}_op_num_threads": 1 for name in ("intra", "inter")}
            detection = {"Det.limit_side_len": _MIN_EDGE_PX, "Det.box_thresh": _MIN_SCORE}
            self._engine = RapidOCR(params={**threads, **detection, "Global.log_level": "error"})
        return self._engine


def _is_line(box: np.ndarray, shorter_edge_px: int) -> bool:
    thickness = min(np.linalg.norm(box[1] - box[0]), np.linalg.norm(box[2] - box[1]))
    return bool(thickness < _MAX_LINE_SHARE * shorter_edge_px)
