"""Scores of one picture, measured at a fixed size so that they do not depend on its resolution.

The picture is area-averaged to a shorter edge of 256 px (Emu3 2.1 measures its video scores at that size); smaller
ones are left as they are. Colourfulness is M3 of Hasler & Suesstrunk 2003; the hash is the 64-bit DCT hash (pHash):
32 x 32 luma, the 8 x 8 lowest frequencies, each above or below their median.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

SCORING_PX = 256


class PictureScores(NamedTuple):
    """`sharpness` (variance of the Laplacian), `luminance`, `contrast` (0..255), `colourfulness`, `phash` (16 hex)."""

    sharpness: float
    luminance: float
    contrast: float
    colourfulness: float
    phash: str


def _at_scoring_size(rgb: np.ndarray) -> np.ndarray:
    height, width = rgb.shape[:2]
    scale = SCORING_PX / min(height, width)
    if scale >= 1:
        return rgb
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)


def phash(luma: np.ndarray) -> str:
    """16 hex digits: the 64-bit DCT hash of a uint8 (H, W) luma plane."""
    small = cv2.resize(luma, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    # Rounded: on flat areas the low frequencies are float noise around zero, which must not become bits.
    lowest = np.round(cv2.dct(small)[:8, :8], 2)
    return np.packbits(lowest > np.median(lowest)).tobytes().hex()


def colourfulness(rgb: np.ndarray) -> float:
    """M3 of Hasler & Suesstrunk of a uint8 (H, W, 3) RGB picture: 0 is grey, above 50 is vivid."""
    red, green, blue = (channel.astype(np.int16) for channel in cv2.split(rgb))
    means, deviations = [], []
    for opponent, scale in ((red - green, 1.0), (red + green - 2 * blue, 0.5)):
        mean, deviation = cv2.meanStdDev(opponent)
        means.append(scale * mean.item())
        deviations.append(scale * deviation.item())
    return math.hypot(*deviations) + 0.3 * math.hypot(*means)


def measure(rgb: np.ndarray) -> PictureScores:
    """Scores of a uint8 (H, W, 3) RGB picture of any size."""
    rgb = _at_scoring_size(rgb)
    luma = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    mean, deviation = cv2.meanStdDev(luma)
    _, laplacian = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))
    return PictureScores(
        sharpness=laplacian.item() ** 2,
        luminance=mean.item(),
        contrast=deviation.item(),
        colourfulness=colourfulness(rgb),
        phash=phash(luma),
    )
