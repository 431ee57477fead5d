"""Frames in memory -> a small trained Emu3VQVAE, saved so that plain `Emu3VQVAE.from_pretrained` loads it.

No training code of Emu3's tokenizer was ever released. This one keeps its architecture and the part of its losses that
needs no downloaded weights (L2 + 0.1 L1 + commitment, hinge PatchGAN on request; no perceptual loss), and trains the
exact path that VisionTokenizer runs: trunk once per still, groups of four frames. FSQ by default (tokenizer/vq_losses).
The temporal BatchNorms stay in eval mode with identity statistics, so training and use do not differ.

Everything of a step is a function of (config, data, step): a resumed run repeats the uninterrupted one exactly.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenizer import vq
from tokenizer.identity import fingerprint
from tokenizer.vq_batches import clip_batch, image_batch
from tokenizer.vq_config import VqLossConfig, VqModelConfig, VqTrainConfig
from tokenizer.vq_pictures import draw_curve, draw_reconstructions
from tokenizer.vq_trainee import TEMPORAL_FACTOR, Training

__all__ = ["VqLossConfig", "VqModelConfig", "VqTrainConfig", "train"]


def train(
    config: VqTrainConfig,
    images: Sequence[np.ndarray],
    clips: Sequence[np.ndarray],
    out: Path,
    *,
    device: str = "cpu",
    compile_trunks: bool = False,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Train on `images`, uint8 (H, W, 3), and `clips`, uint8 (T, H, W, 3), T >= 4; return the folder of the model.

    All pixels are held in memory by the caller (3 bytes each: 1,000 images of 256 px are 0.2 GB). List an image more
    often to show it more often, which costs nothing. Those smaller than a crop are scaled up; scale larger ones down
    beforehand, to the sizes that will be tokenized. `out` gets model/, checkpoint.pt, log.jsonl (one record a step,
    also given to `on_step`), loss.png and reconstructions.png. A checkpoint of this config in `out` is gone on from.
    `compile_trunks` pays two minutes of compilation for steps 1.6 times as fast on a CPU.

    Raises ValueError for empty data, clips of fewer than four frames, or a folder with another config's checkpoint.
    """
    kinds = _kinds(images, clips)
    training = Training(config, device, compile_trunks)
    out.mkdir(parents=True, exist_ok=True)
    first = _resume(out, training)
    with (out / "log.jsonl").open("a") as log:
        for step in range(first, config.steps):
            rng = np.random.default_rng([config.seed, step])
            kind = kinds[int(rng.random() < config.video_share)]
            if kind == "images":
                frames = image_batch(images, config.batch, config.crop_px, rng)[:, None]
            else:
                frames = clip_batch(clips, config.batch // TEMPORAL_FACTOR, config.crop_px, TEMPORAL_FACTOR, rng)
            pixels = vq.to_pixels(torch.from_numpy(frames).to(device))
            record = {"step": step, "kind": kind, **training.step(pixels, step)}
            log.write(json.dumps(record) + "\n")
            log.flush()
            if (step + 1) % config.checkpoint_steps == 0 or step + 1 == config.steps:
                _checkpoint(out, training, step + 1)
            if on_step:
                on_step(record)
    folder = out / "model"
    training.averaged_model().save_pretrained(folder)
    draw_curve(out / "log.jsonl", out / "loss.png")
    tokenizer = vq.VisionTokenizer.load(str(folder))
    draw_reconstructions(tokenizer, images, clips, config.crop_px, out / "reconstructions.png")
    return folder


def _kinds(images: Sequence[np.ndarray], clips: Sequence[np.ndarray]) -> tuple[str, str]:
    """What a step is made of when it is (no video, video): the other one where one is missing."""
    if not images and not clips:
        raise ValueError("no images and no clips to train on; give at least one list")
    short = [len(clip) for clip in clips if len(clip) < TEMPORAL_FACTOR]
    if short:
        raise ValueError(f"a clip has {min(short)} frames, a group is {TEMPORAL_FACTOR}; leave shorter clips out")
    return ("images" if images else "clips"), ("clips" if clips else "images")


def _checkpoint(out: Path, training: Training, step: int) -> None:
    """Written whole or not at all."""
    state = {"step": step, "config": fingerprint(training.config), **training.state()}
    temporary = out / "checkpoint.pt.partial"
    torch.save(state, temporary)
    os.replace(temporary, out / "checkpoint.pt")


def _resume(out: Path, training: Training) -> int:
    """Load the checkpoint in `out`, if any, cut the log to it, and return the step to go on from."""
    path, log = out / "checkpoint.pt", out / "log.jsonl"
    step = 0
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["config"] != fingerprint(training.config):
            raise ValueError(f"{path}: of another config; give another folder or delete this one")
        step = state["step"]
        training.load_state(state)
    if log.exists():
        lines = log.read_text().splitlines(keepends=True)
        log.write_text("".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step))
    return step
