"""A trained tokenizer and its log -> two pictures: reconstructions under their originals, and the curve of PSNR."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from tokenmill import storage
from tokenmill.storage.run_log import Record
from tokenmill.tokenizer.vision.training.batches import large_enough
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer

_NUM_COLUMNS = 8
_SMOOTHING_STEPS = 25


def draw_reconstructions(
    tokenizer: VisionTokenizer, images: Sequence[np.ndarray], clips: Sequence[np.ndarray], side_px: int, uri: str
) -> None:
    """A PNG of up to eight images (centre crops) over their reconstructions, and two clips of four frames likewise."""
    rows = []
    if images:
        picks = np.linspace(0, len(images) - 1, _NUM_COLUMNS).astype(int)
        originals = np.stack([_centre(images[index][None], side_px)[0] for index in picks])
        rows += [originals, tokenizer.decode_images(tokenizer.encode_images(originals))]
    if clips:
        picks = np.linspace(0, len(clips) - 1, _NUM_COLUMNS // tokenizer.temporal_factor).astype(int)
        originals = np.stack([_centre(clips[index][: tokenizer.temporal_factor], side_px) for index in picks])
        decoded = tokenizer.decode_clips(tokenizer.encode_clips(originals))
        rows += [originals.reshape(-1, *originals.shape[2:]), decoded.reshape(-1, *decoded.shape[2:])]
    png = io.BytesIO()
    Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows])).save(png, "PNG")
    storage.write_bytes(uri, png.getvalue())


def draw_curve(records: list[Record], uri: str) -> None:
    """A PNG of PSNR by step, smoothed over 25 steps, images and clips apart; of the records of a training's log."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for kind in ("images", "clips"):
        steps = [record["step"] for record in records if record["kind"] == kind]
        values = [record["psnr"] for record in records if record["kind"] == kind]
        width = min(_SMOOTHING_STEPS, len(values))
        if width:
            axes.plot(steps[width - 1 :], np.convolve(values, np.ones(width) / width, "valid"), label=kind)
    axes.set_xlabel("step")
    axes.set_ylabel("PSNR of training crops, dB")
    axes.legend()
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    storage.write_bytes(uri, png.getvalue())


def _centre(frames: np.ndarray, side_px: int) -> np.ndarray:
    frames = large_enough(frames, side_px)
    top, left = (frames.shape[1] - side_px) // 2, (frames.shape[2] - side_px) // 2
    return frames[:, top : top + side_px, left : left + side_px]
