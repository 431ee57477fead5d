"""Scores of one picture, measured at a fixed size so that they do not depend on its resolution.

The picture is averaged to a shorter edge of 256 px (Emu3 2.1 measures its video scores at that size); smaller ones are
left as they are. Colourfulness is M3 of Hasler & Suesstrunk 2003; the hash is the 64-bit DCT hash (pHash):
32 x 32 luma, the 8 x 8 lowest frequencies, each above or below their median. Noise is Immerkaer's estimate (1996).
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

SCORING_PX = 256

_FLAT_RANGE = 16  # of luma: a bar after JPEG
_NOISE_BLOCK_PX = 8
_NOISE_QUANTILE = 0.1  # of blocks: the flattest, where texture does not pass for noise
_COLOUR_PX = 96
_Weights = tuple[float, float, float]  # of red, green and blue
_RED_GREEN, _YELLOW_BLUE = (1.0, -1.0, 0.0), (0.5, 0.5, -1.0)
_LUMA, _CR, _CB = (0.299, 0.587, 0.114), (0.5, -0.4187, -0.0813), (-0.1687, -0.3313, 0.5)  # of JPEG
_NOISE_KERNEL = np.array([1, -2, 1], np.float32)  # of each axis


class PictureScores(NamedTuple):
    """`sharpness` (variance of the Laplacian), `luminance`, `contrast` (0..255), `colourfulness`, `chroma` (0..128),
    `noise` (standard deviation, 0..255), `border` (share), `phash` (16 hex digits).
    """

    sharpness: float
    luminance: float
    contrast: float
    colourfulness: float
    chroma: float
    noise: float
    border: float
    phash: str


def _reduced(rgb: np.ndarray) -> np.ndarray:
    """Averaged by a whole factor to a shorter edge of 256 to 511 px, as libjpeg does it while decoding."""
    height, width = rgb.shape[:2]
    factor = min(height, width) // SCORING_PX
    if factor < 2:
        return rgb
    whole = rgb[: height // factor * factor, : width // factor * factor]
    return cv2.resize(whole, (width // factor, height // factor), interpolation=cv2.INTER_AREA)


def _at_scoring_size(luma: np.ndarray) -> np.ndarray:
    """Interpolated to a shorter edge of 256 px; smaller ones stay."""
    height, width = luma.shape
    scale = SCORING_PX / min(height, width)
    if scale >= 1:
        return luma
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(luma, size, interpolation=cv2.INTER_LINEAR)


def phash(luma: np.ndarray) -> str:
    """16 hex digits: the 64-bit DCT hash of a uint8 (H, W) luma plane."""
    small = cv2.resize(luma, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    # Rounded: on flat areas the low frequencies are float noise around zero, which must not become bits.
    lowest = np.round(cv2.dct(small)[:8, :8], 2)
    return np.packbits(lowest > np.median(lowest)).tobytes().hex()


def colour(rgb: np.ndarray) -> tuple[float, float]:
    """(colourfulness, chroma) of a uint8 (H, W, 3) RGB picture, from about 9,000 of its pixels.

    Colourfulness is M3 of Hasler & Suesstrunk: 0 is grey, above 50 is vivid. Chroma is the root mean square, 0..128, of
    the chroma that a line through the luma does not explain: grey pictures have none, tinted ones (sepia, cyanotype)
    one that follows their luma; both are monochrome.
    """
    height, width = (min(side, _COLOUR_PX) for side in rgb.shape[:2])
    small = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR)
    # Sums of whole numbers are exact in float64, in whatever order a BLAS adds them, which differs from CPU to CPU.
    levels = small.reshape(-1, 3).astype(np.float64)
    means = ((np.ones(len(levels)) @ levels) / len(levels)).tolist()
    products = (levels.T @ levels).tolist()
    spread = [[products[i][j] / len(levels) - means[i] * means[j] for j in range(3)] for i in range(3)]

    def covariance(one: _Weights, other: _Weights) -> float:
        return sum(one[i] * other[j] * spread[i][j] for i in range(3) for j in range(3))

    opponents = math.sqrt(max(0.0, covariance(_RED_GREEN, _RED_GREEN) + covariance(_YELLOW_BLUE, _YELLOW_BLUE)))
    hues = (sum(w * mean for w, mean in zip(weights, means, strict=True)) for weights in (_RED_GREEN, _YELLOW_BLUE))
    explained = covariance(_LUMA, _CR) ** 2 + covariance(_LUMA, _CB) ** 2
    left = covariance(_CR, _CR) + covariance(_CB, _CB) - explained / (covariance(_LUMA, _LUMA) + 1e-9)
    return opponents + 0.3 * math.hypot(*hues), math.sqrt(max(0.0, left) / 2)


def noise(luma: np.ndarray) -> float:
    """Immerkaer's estimate of the noise's standard deviation in the flattest tenth of a uint8 (H, W) luma plane."""
    height, width = (side // _NOISE_BLOCK_PX for side in luma.shape)
    if not height or not width:
        return 0.0
    luma = luma[: height * _NOISE_BLOCK_PX, : width * _NOISE_BLOCK_PX]
    response = cv2.sepFilter2D(luma, cv2.CV_16S, _NOISE_KERNEL, _NOISE_KERNEL)
    blocks = cv2.resize(np.abs(response).view(np.uint16), (width, height), interpolation=cv2.INTER_AREA)
    rank = int(_NOISE_QUANTILE * blocks.size)
    return math.sqrt(math.pi / 2) / 6 * float(np.partition(blocks, rank, axis=None)[rank])


def border(luma: np.ndarray) -> float:
    """Share of a uint8 (H, W) luma plane in rows and columns at its edges that are flat and of one brightness."""
    inner = 1.0
    for axis in (1, 0):
        least, most = luma.min(axis), luma.max(axis)
        num_bars, length = _bar(least, most), len(least)
        num_bars += 0 if num_bars == length else _bar(least[::-1], most[::-1])
        inner *= 1 - num_bars / length
    return 1 - inner


def _bar(least: np.ndarray, most: np.ndarray) -> int:
    """How many lines from the first on are flat, and as bright as it, by their extremes."""
    ranges = np.maximum.accumulate(most) - np.minimum.accumulate(least)
    is_wide = ranges > _FLAT_RANGE
    return int(is_wide.argmax()) if is_wide.any() else len(is_wide)


def measure(rgb: np.ndarray) -> PictureScores:
    """Scores of a uint8 (H, W, 3) RGB picture of any size."""
    rgb = _reduced(rgb)
    luma = _at_scoring_size(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))
    colourfulness, chroma = colour(rgb)
    mean, deviation = cv2.meanStdDev(luma)
    _, laplacian = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))
    return PictureScores(
        sharpness=laplacian.item() ** 2,
        luminance=mean.item(),
        contrast=deviation.item(),
        colourfulness=colourfulness,
        chroma=chroma,
        noise=noise(luma),
        border=border(luma),
        phash=phash(luma),
    )
