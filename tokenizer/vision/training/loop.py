"""Frames in memory -> a small trained Emu3VQVAE, saved so that plain `Emu3VQVAE.from_pretrained` loads it.

No training code of Emu3's tokenizer was ever released. This one keeps its architecture and the part of its losses that
needs no downloaded weights (L2 + 0.1 L1 + commitment; hinge PatchGAN and a perceptual loss on request), and trains the
exact path that VisionTokenizer runs: trunk once per still, groups of four frames. FSQ by default (losses.py).
The temporal BatchNorms stay in eval mode with identity statistics, so training and use do not differ.

Everything of a step is a function of (config, data, step): a resumed run repeats the uninterrupted one exactly.
"""

import tempfile
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenmill import storage
from tokenmill.storage.cpu import quick_dtype
from tokenmill.storage.errors import TrainingError
from tokenmill.storage.run_log import TrainLog, read_log
from tokenmill.tokenizer.vision import vision_tokenizer
from tokenmill.tokenizer.vision.training import checkpoint
from tokenmill.tokenizer.vision.training.batches import clip_batch, image_batch, odds
from tokenmill.tokenizer.vision.training.config import DONE, VisionTrainConfig, another
from tokenmill.tokenizer.vision.training.motion import MotionTraining
from tokenmill.tokenizer.vision.training.parallel import Workers
from tokenmill.tokenizer.vision.training.pictures import draw_curve, draw_reconstructions
from tokenmill.tokenizer.vision.training.trainee import TEMPORAL_FACTOR, Training

_DRAWN = ("kind", "psnr")


def train(
    config: VisionTrainConfig,
    images: Sequence[np.ndarray],
    clips: Sequence[np.ndarray],
    out: str,
    *,
    data_id: str = "",
    device: str = "cpu",
    compile_trunks: bool = False,
    checkpoint_steps: int = 500,
    workers: Workers | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> str:
    """Train on `images`, uint8 (H, W, 3), and `clips`, uint8 (T, H, W, 3), T >= 4; return the URI of the model.

    Crops are drawn evenly over the pixels of all images, and of all clips, that are large enough for the step's side: a
    large picture is shown more often. All pixels are held in memory by the caller (3 bytes each), on every worker
    alike. `out`, a folder or s3:// prefix, gets model/, checkpoint.pt, log.jsonl (one record a step, also given to
    `on_step`), loss.png and reconstructions.png, the pictures with every checkpoint. A checkpoint in `out` of this
    config and of the same `data_id` is gone on from. `compile_trunks` pays minutes of compilation, once for each side,
    for steps 1.6 times as fast on a CPU.

    Raises TrainingError for empty data, clips of fewer than four frames, a batch that the workers cannot share, or a
    folder with the checkpoint of another config or of other data, or with a damaged one.
    """
    workers = workers or Workers()
    saved = checkpoint.load(out)
    identities = config.identities(data_id)
    begun = [dtype for dtype, identity in identities.items() if saved is not None and saved["identity"] == identity]
    dtype = [*begun, quick_dtype(device != "cpu")][0] if config.dtype == "auto" else config.dtype
    config, identity = config.model_copy(update={"dtype": dtype}), identities[dtype]
    batches = _Batches(config, images, clips, workers, device)
    made = MotionTraining if config.loss.motion_only else Training
    training = made(config, device, compile_trunks, workers)
    first = 0 if saved is None else _resume(out, training, identity, saved)
    fits_codes = config.model.quantizer == "kmeans" and not config.loss.decoder_only
    log = TrainLog(out, first, *_DRAWN) if workers.rank == 0 else None
    for step in range(first, config.steps):
        if fits_codes and step == config.loss.codes_from_step:
            training.fit_codebook(batches.draw(np.random.default_rng([config.seed, i, 2]))[1] for i in count())
        kind, pixels = batches.draw(np.random.default_rng([config.seed, step]))
        record = {"step": step + 1, "kind": kind, **training.step(pixels, step)}
        if log is not None:
            log.append(record)
        is_saved = (step + 1) % checkpoint_steps == 0 or step + 1 == config.steps
        if is_saved and log is not None:
            log.flush()
            checkpoint.save(out, {"step": step + 1, "identity": identity, **training.state()})
            _draw(out, training, images, clips)
        if on_step:
            on_step(record)
    model_uri = storage.join(out, "model")
    if workers.rank == 0:
        with tempfile.TemporaryDirectory(prefix="tokenmill-") as folder:
            training.averaged_model().save_pretrained(folder)
            storage.upload_folder(Path(folder), model_uri)
        storage.write_json(storage.join(out, DONE), {"identity": identity, "dtype": dtype})
    return model_uri


class _Batches:
    """What steps are made of. Raises TrainingError for empty data and clips of fewer than four frames."""

    def __init__(
        self,
        config: VisionTrainConfig,
        images: Sequence[np.ndarray],
        clips: Sequence[np.ndarray],
        workers: Workers,
        device: str,
    ) -> None:
        self._kinds = _kinds(images, clips)
        if config.loss.motion_only and not (images and clips):
            raise TrainingError(
                f"motion_only compares clips with images; here are {len(images)} images and {len(clips)} clips of "
                f"{TEMPORAL_FACTOR} frames or more: add sources, or see why they were rejected (`tokenmill status`)"
            )
        self._config, self._workers, self._device = config, workers, device
        self._images, self._clips = images, clips
        self._odds = {side: (odds(images, side), odds(clips, side)) for side in config.crops_px}

    def draw(self, rng: np.random.Generator) -> tuple[str, Tensor]:
        """`images` or `clips`, and this worker's part (B, T, 3, side, side), in -1..1, of a batch; T is 1 or 4."""
        kind = self._kinds[int(rng.random() < self._config.video_share)]
        side = self._config.crops_px[rng.integers(len(self._config.crops_px))]
        if kind == "images":
            frames = image_batch(self._images, self._count(side, 1), side, rng, self._odds[side][0])[:, None]
        else:
            num_clips = self._count(side, TEMPORAL_FACTOR)
            frames = clip_batch(self._clips, num_clips, side, TEMPORAL_FACTOR, rng, self._odds[side][1])
        return kind, vision_tokenizer.to_pixels(self._workers.share(torch.from_numpy(frames)).to(self._device))

    def _count(self, side: int, num_frames: int) -> int:
        """How many crops of `side` px, of `num_frames` each, have the pixels of `batch` frames of the first side."""
        first = self._config.crops_px[0]
        return max(1, round(self._config.batch // num_frames * (first / side) ** 2))


def _draw(out: str, training: Training, images: Sequence[np.ndarray], clips: Sequence[np.ndarray]) -> None:
    draw_curve(read_log(out, *_DRAWN), storage.join(out, "loss.png"))
    tokenizer = vision_tokenizer.VisionTokenizer(training.averaged_model(), "in training", training.device)
    side = training.config.crops_px[0]
    draw_reconstructions(tokenizer, images, clips, side, storage.join(out, "reconstructions.png"))


def _kinds(images: Sequence[np.ndarray], clips: Sequence[np.ndarray]) -> tuple[str, str]:
    """What a step is made of when it is (no video, video): the other one where one is missing."""
    if not images and not clips:
        raise TrainingError("no images and no clips to train on; give at least one list")
    short = [len(clip) for clip in clips if len(clip) < TEMPORAL_FACTOR]
    if short:
        raise TrainingError(f"a clip has {min(short)} frames, a group is {TEMPORAL_FACTOR}; leave shorter clips out")
    return ("images" if images else "clips"), ("clips" if clips else "images")


def _resume(out: str, training: Training, identity: str, state: dict[str, Any]) -> int:
    """Go on from the checkpoint of `out`; returns its step."""
    if state["identity"] != identity:
        raise another(checkpoint.uri_of(out))
    with checkpoint.fit_to_use(out):
        training.load_state(state)
    return state["step"]
