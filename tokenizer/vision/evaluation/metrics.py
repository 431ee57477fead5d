"""Pictures and their reconstructions -> PSNR, SSIM and motion PSNR; codes -> how much of the codebook they use.

PSNR and SSIM are torchmetrics'. SSIM is that of Wang et al. 2004: luma only, Gaussian window of 11 px with sigma 1.5,
valid positions, K1 0.01, K2 0.03. Report codebook use for images and clips apart: Emu3's images never touch half of its
codes.
"""

from typing import Any

import numpy as np
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from tokenmill.tokenizer.geometry import SSIM_WINDOW_PX

LUMA = (0.299, 0.587, 0.114)
_SIGMA_PX = 1.5


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 arrays of one shape; inf when equal."""
    _check(a, b)
    return _psnr(a.astype(np.float64), b.astype(np.float64))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean structural similarity, -1..1, of two uint8 RGB pictures (H, W, 3), at least 11 px a side."""
    _check(a, b)
    if min(a.shape[:2]) < SSIM_WINDOW_PX:
        raise ValueError(
            f"{a.shape[1]}x{a.shape[0]} px: SSIM needs {SSIM_WINDOW_PX} px a side; compare larger pictures"
        )
    x, y = (torch.from_numpy(picture @ np.array(LUMA))[None, None] for picture in (a, b))
    _, similarity = structural_similarity_index_measure(
        x, y, sigma=_SIGMA_PX, kernel_size=SSIM_WINDOW_PX, data_range=255.0, return_full_image=True
    )
    border = SSIM_WINDOW_PX // 2  # torchmetrics mirrors the picture there
    return float(similarity[..., border:-border, border:-border].mean())


def motion_psnr(a: np.ndarray, b: np.ndarray) -> float:
    """How well change over time is kept: PSNR in dB, peak 255, of the differences between neighbouring frames.

    `a`, `b`: uint8 (T, H, W, 3) of one shape, T at least 2; inf when all changes are equal. A still shown for a clip
    scores as the motion itself counts as error; flicker that the original lacks is an error too, and a constant error
    is none.
    """
    _check(a, b)
    if a.ndim != 4 or len(a) < 2:
        raise ValueError(f"{a.shape}: motion needs (T, H, W, 3) with two frames or more")
    changes = [np.diff(frames.astype(np.float64), axis=0) for frames in (a, b)]
    return _psnr(*changes)


def codebook_use(codes: np.ndarray, codebook_size: int) -> dict[str, Any]:
    """Of integer codes of any shape: `codes_used`, `share_used` (0..1), `bits` (entropy of a code), `perplexity`."""
    counts = np.bincount(codes.reshape(-1), minlength=codebook_size)
    shares = counts[counts > 0] / max(1, counts.sum())
    bits = float(-(shares * np.log2(shares)).sum())
    used = int((counts > 0).sum())
    return {"codes_used": used, "share_used": used / codebook_size, "bits": bits, "perplexity": 2**bits}


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(peak_signal_noise_ratio(torch.from_numpy(a), torch.from_numpy(b), data_range=255.0))


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.dtype != np.uint8 or b.dtype != np.uint8 or a.shape != b.shape:
        raise ValueError(f"{a.dtype} {a.shape} and {b.dtype} {b.shape}: give two uint8 arrays of one shape")
