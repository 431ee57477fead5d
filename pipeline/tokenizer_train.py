"""`tokenmill tokenizer train`: a vision tokenizer trained on the kept media of the catalog.

Curates first (a known corpus is not read again), then holds kept images and clips in memory at the size at which they
are to be tokenized, at most `_MAX_BYTES` of them in the order of their ids, which is random; see tokenizer/vq_train.py
for the recipe. Runs in this process, on its GPU when it has one. An interrupted training goes on from its checkpoint.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from rich.console import Console

from pipeline import phases
from pipeline.catalog import CatalogError
from pipeline.config import RunConfig
from pipeline.line import run_phases
from stages.frames import LoadFrames
from tokenizer import storage
from tokenizer.vq_train import train

_MAX_BYTES = 2 << 30
_ROWS_AT_ONCE = 64
_SHOW_EVERY_S = 5.0


def train_tokenizer(config: RunConfig, out: str | None, console: Console) -> None:
    """Train on the catalog's kept media and save under `out` (default ROOT/tokenizer). Raises CatalogError without
    media.
    """
    run = run_phases(config, ("curate",), "tokenizer train", console)
    images, clips = _load(run)
    if not images and not clips:
        raise CatalogError(
            f"{run.catalog.root}: no kept media to train on; `tokenmill status` shows why they were rejected"
        )
    console.print(f"Training on {len(images)} images and {len(clips)} clips", highlight=False)
    torch.set_num_threads(max(1, config.cluster.num_cpus or torch.get_num_threads()))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    uri = storage.absolute(out or storage.join(run.catalog.root, "tokenizer"))
    show = _Progress(console, config.tokenizer.steps)
    if not storage.is_remote(uri):
        model = train(config.tokenizer, images, clips, Path(uri), device=device, on_step=show)
    else:
        with tempfile.TemporaryDirectory(prefix="tokenmill-") as folder:
            train(config.tokenizer, images, clips, Path(folder), device=device, on_step=show)
            storage.upload_folder(Path(folder), uri)
        model = Path(uri) / "model"
    console.print(
        f"Model in {model}; use it with --set tokenize.tokenize.model={model}\n"
        f"Look at {uri}/reconstructions.png and {uri}/loss.png",
        highlight=False,
    )


def _load(run: phases.Run) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Kept media as arrays: images uint8 (H, W, 3), clips uint8 (T, H, W, 3)."""
    columns = ["media_id", "kind", "uri", "member", "start_s", "end_s"]
    media = run.catalog.media.scan(columns, pc.field("reject_reason").is_null()).sort_by("media_id")
    load = LoadFrames(run.config.tokenize.frames)
    images: list[np.ndarray] = []
    clips: list[np.ndarray] = []
    num_bytes = 0
    for start in range(0, media.num_rows, _ROWS_AT_ONCE):
        for row in load(media.slice(start, _ROWS_AT_ONCE)).to_pylist():
            if row["reject_reason"] is None:
                frames = np.frombuffer(row["frames"], np.uint8).reshape(
                    row["frames_t"], row["frames_h"], row["frames_w"], 3
                )
                (clips if row["kind"] == "video" else images).append(frames if row["kind"] == "video" else frames[0])
                num_bytes += frames.nbytes
        if num_bytes > _MAX_BYTES:
            break
    return images, clips


class _Progress:
    """Prints a line every few seconds: step, PSNR, codes in use, time left."""

    def __init__(self, console: Console, steps: int):
        self._console, self._steps = console, steps
        self._start = self._last = time.monotonic()
        self._first: int | None = None

    def __call__(self, record: dict[str, Any]) -> None:
        now, step = time.monotonic(), record["step"] + 1
        self._first = step - 1 if self._first is None else self._first
        if now - self._last >= _SHOW_EVERY_S or step == self._steps:
            self._last = now
            left_s = (now - self._start) / (step - self._first) * (self._steps - step)
            self._console.print(
                f"  step {step}/{self._steps}  loss {record['loss']:.4f}  PSNR {record['psnr']:.1f} dB  "
                f"left {left_s:.0f} s",
                highlight=False,
            )
