"""Images and clips in memory -> batches of random crops and flips, a pure function of the generator given."""

from collections.abc import Sequence

import numpy as np

from tokenmill.tokenizer.geometry import resize


def odds(media: Sequence[np.ndarray], side_px: int) -> np.ndarray:
    """Chance of each medium, float64 (N,): in proportion to its pixels, none where a side is shorter than `side_px`.

    Where all are too small, none is: crops enlarge them.
    """
    sides = np.array([medium.shape[-3:-1] for medium in media], np.float64).reshape(-1, 2)
    large = sides.min(1) >= side_px
    sizes = sides.prod(1) * (large if large.any() else 1)
    return sizes / max(1.0, sizes.sum())


def image_batch(
    images: Sequence[np.ndarray], count: int, crop_px: int, rng: np.random.Generator, odds: np.ndarray | None = None
) -> np.ndarray:
    """`count` random crops, mirrored half of the time: uint8 (count, crop_px, crop_px, 3).

    `odds` (N,) is the chance of each image; null: all alike.
    """
    chosen = rng.choice(len(images), count, p=odds)
    return np.stack([_crop(images[index][None], crop_px, rng)[0] for index in chosen])


def clip_batch(
    clips: Sequence[np.ndarray],
    count: int,
    crop_px: int,
    num_frames: int,
    rng: np.random.Generator,
    odds: np.ndarray | None = None,
) -> np.ndarray:
    """`count` crops of neighbouring frames: uint8 (count, num_frames, crop_px, crop_px, 3). `odds` as above."""
    taken = []
    for index in rng.choice(len(clips), count, p=odds):
        start = rng.integers(len(clips[index]) - num_frames + 1)
        taken.append(_crop(clips[index][start : start + num_frames], crop_px, rng))
    return np.stack(taken)


def _crop(frames: np.ndarray, crop_px: int, rng: np.random.Generator) -> np.ndarray:
    frames = large_enough(frames, crop_px)
    top = rng.integers(frames.shape[1] - crop_px + 1)
    left = rng.integers(frames.shape[2] - crop_px + 1)
    crop = frames[:, top : top + crop_px, left : left + crop_px]
    return crop[:, :, ::-1] if rng.random() < 0.5 else crop


def large_enough(frames: np.ndarray, side_px: int) -> np.ndarray:
    """Frames (T, H, W, 3), scaled up where a side is shorter than `side_px`."""
    height, width = frames.shape[1:3]
    if min(height, width) >= side_px:
        return frames
    scale = side_px / min(height, width)
    size = max(side_px, round(width * scale)), max(side_px, round(height * scale))
    return np.stack([resize(frame, size) for frame in frames])
