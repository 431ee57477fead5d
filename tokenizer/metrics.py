"""Pictures and their reconstructions -> PSNR and SSIM; codes -> how much of the codebook they use.

SSIM is that of Wang et al. 2004: luma only, Gaussian window of 11 px with sigma 1.5, valid positions, K1 0.01, K2 0.03.
Report codebook use for images and clips apart: Emu3's images never touch half of its codes.
"""

import math
from typing import Any

import numpy as np

_LUMA = np.array([0.299, 0.587, 0.114])
_WINDOW_PX = 11
_SIGMA_PX = 1.5


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 arrays of one shape; inf when equal."""
    _check(a, b)
    mse = float(np.mean((a.astype(np.float64) - b) ** 2))
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean structural similarity, -1..1, of two uint8 RGB pictures (H, W, 3), at least 11 px a side."""
    _check(a, b)
    if min(a.shape[:2]) < _WINDOW_PX:
        raise ValueError(f"{a.shape[1]}x{a.shape[0]} px: SSIM needs {_WINDOW_PX} px a side; compare larger pictures")
    x, y = a @ _LUMA, b @ _LUMA
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))))


def codebook_use(codes: np.ndarray, codebook_size: int) -> dict[str, Any]:
    """Of integer codes of any shape: `codes_used`, `share_used` (0..1), `bits` (entropy of a code), `perplexity`."""
    counts = np.bincount(codes.reshape(-1), minlength=codebook_size)
    shares = counts[counts > 0] / max(1, counts.sum())
    bits = float(-(shares * np.log2(shares)).sum())
    used = int((counts > 0).sum())
    return {"codes_used": used, "share_used": used / codebook_size, "bits": bits, "perplexity": 2**bits}


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.dtype != np.uint8 or b.dtype != np.uint8 or a.shape != b.shape:
        raise ValueError(f"{a.dtype} {a.shape} and {b.dtype} {b.shape}: give two uint8 arrays of one shape")


def _blurred(plane: np.ndarray) -> np.ndarray:
    offsets = np.arange(_WINDOW_PX) - _WINDOW_PX // 2
    kernel = np.exp(-(offsets**2) / (2 * _SIGMA_PX**2))
    kernel /= kernel.sum()
    rows = np.lib.stride_tricks.sliding_window_view(plane, _WINDOW_PX, axis=0) @ kernel
    return np.lib.stride_tricks.sliding_window_view(rows, _WINDOW_PX, axis=1) @ kernel
