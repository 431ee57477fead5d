"""Sizes and moments: which pixels of an image, which frames of a clip, become codes.

Emu3 trains on images "close to an area" with their aspect kept. Snapping both sides to multiples of 8 near that area
leaves 229 sizes at 512 x 512 for aspects up to 5:1, so images of exactly one size can share a batch (a clamp between
two areas leaves over 11,000, and padding would change the codes of the whole image). One bicubic resize, not two as
in Emu3's code.
"""

import math

import numpy as np
from PIL import Image

SSIM_WINDOW_PX = 11  # side of the windows that SSIM compares: smaller pictures have none


class AspectError(ValueError):
    """The longer side is too many times the shorter one; the message says how many."""


def fit_area(
    width_px: int, height_px: int, area_px: int, factor: int = 8, max_aspect: float = 5.0, upscale: bool = True
) -> tuple[int, int]:
    """(width, height) to resize to: multiples of `factor` near `area_px`, aspect kept.

    Without `upscale`, a picture smaller than the area keeps its own, snapped to `factor`.
    Raises AspectError when the longer side is over `max_aspect` times the shorter, ValueError for an empty picture.
    """
    if width_px < 1 or height_px < 1:
        raise ValueError(f"{width_px}x{height_px} px: a picture needs at least one pixel; leave it out")
    aspect = max(width_px, height_px) / min(width_px, height_px)
    if aspect > max_aspect:
        raise AspectError(f"{width_px}x{height_px} px: aspect {aspect:.2f} is over the limit of {max_aspect:g}")
    scale = math.sqrt(area_px / (width_px * height_px))
    if not upscale:
        scale = min(1.0, scale)
    return _snap(width_px * scale, factor), _snap(height_px * scale, factor)


def buckets(area_px: int, factor: int = 8, max_aspect: float = 5.0) -> list[tuple[int, int]]:
    """Every (width, height) that `fit_area` can give at this area, sorted. With `upscale=False` smaller ones join them.

    A side changes only where the aspect carries it over half a factor: one aspect between each two such places, and
    those places themselves, see all sizes.
    """
    longest = math.sqrt(area_px * max_aspect)
    halves = [(count + 0.5) * factor for count in range(int(longest / factor) + 1)]
    borders = [half**2 / area_px for half in halves] + [area_px / half**2 for half in halves]
    inside = sorted({1 / max_aspect, 1.0, max_aspect, *(a for a in borders if 1 / max_aspect < a < max_aspect)})
    aspects = inside + [math.sqrt(low * high) for low, high in zip(inside, inside[1:], strict=False)]
    sides = [(math.sqrt(area_px * aspect), math.sqrt(area_px / aspect)) for aspect in aspects]
    return sorted({(_snap(width, factor), _snap(height, factor)) for width, height in sides})


def resize(frame: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """One bicubic, antialiased resize: uint8 (H, W, 3) -> uint8 (height, width, 3) with `size_px` = (width, height)."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"frame is {frame.dtype} {frame.shape}; give uint8 RGB (H, W, 3)")
    if frame.shape[:2] == size_px[::-1]:
        return frame
    return np.asarray(Image.fromarray(frame).resize(size_px, Image.Resampling.BICUBIC))


def sample_times(start_s: float, end_s: float, fps: float, max_frames: int) -> np.ndarray:
    """Moments start_s, start_s + 1 / fps, ... before end_s, at most `max_frames`: float64 (T,), in seconds."""
    if fps <= 0:
        raise ValueError(f"fps = {fps}: frames are taken at a rate above 0")
    # A microsecond of slack: 1.0 s at 8 fps is 8 frames, whatever its last bits say.
    count = math.ceil(max(0.0, end_s - start_s - 1e-6) * fps)
    return start_s + np.arange(min(count, max_frames)) / fps


def trim_to_groups(num_frames: int, group: int = 4) -> tuple[int, int]:
    """(frames kept, frames trimmed): what fills no group at the end is left out, and counted."""
    trimmed = num_frames % group
    return num_frames - trimmed, trimmed


def _snap(side_px: float, factor: int) -> int:
    # Halves go up, with slack: the side of a square is half-way too often to be left to its last bits.
    return max(factor, math.floor(side_px / factor + 0.5 + 1e-9) * factor)
