"""Pairs -> a captioner: model and processor in a folder, whatever was killed on the way.

    out/checkpoint.pt, log.jsonl, loss.png    while it trains
    out/model/, done.json                     at the end; on a disk the folder appears whole

Everything of a step is a function of (config, pairs, step): a resumed run repeats the uninterrupted one exactly.
"""

import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tokenmill import storage
from tokenmill.storage.checksums import check_zip
from tokenmill.storage.cpu import quick_dtype
from tokenmill.storage.errors import TrainingError
from tokenmill.storage.failures import as_damaged
from tokenmill.storage.run_log import Record, TrainLog
from tokenmill.tokenizer.vision.training.parallel import Workers
from tokenmill.training.captioner import loaded as given, scratch
from tokenmill.training.captioner.config import CaptionerTrainConfig, CaptionerTrainResources
from tokenmill.training.captioner.learner import Learner
from tokenmill.training.captioner.pairs import Example, Pairs, loaded, order
from tokenmill.training.tracking.curves import draw_curves

MODEL = "model"
_DONE = "done.json"
_CHECKPOINT = "checkpoint.pt"
_CURVES = {"train": "training pairs", "held_out": "held-out pairs"}
_HELD_OUT_PAIRS = 64  # whose loss is watched


def train(
    config: CaptionerTrainConfig,
    resources: CaptionerTrainResources,
    pairs: Pairs,
    held_out: Pairs,
    out: str,
    *,
    key: str,
    device: str = "cpu",
    workers: Workers | None = None,
    on_step: Callable[[Record], None] | None = None,
) -> str:
    """Train on `pairs` into the folder or s3:// prefix `out`; returns the URI of the model. `key` names config and
    pairs: a checkpoint of that key in `out` is gone on from, and a finished training is not done again.

    Every worker calls it with the same pairs. Raises TrainingError: for weights that cannot be loaded or answered
    with, no pairs, a step whose media cannot be opened, a folder with the checkpoint of another key.
    """
    workers = workers or Workers()
    model_uri = storage.join(out, MODEL)
    if storage.exists(storage.join(out, _DONE)):
        return model_uri
    if not len(pairs):
        raise TrainingError("no pairs to train on: all media with captions are held out; lower held_out_share")
    saved = _saved(out, key)
    num_steps = config.optimizer.num_steps(len(pairs))
    dtype = saved["dtype"] if saved else quick_dtype(device != "cpu") if config.dtype == "auto" else config.dtype
    learner = Learner(
        _first_weights(config, pairs, getattr(torch, dtype)),
        config,
        num_steps,
        getattr(torch, dtype),
        device=device,
        passes=resources.batch,
        recompute=resources.recompute,
        workers=workers,
    )
    first = 0
    if saved is not None:
        learner.load_state(saved["learner"])
        first = int(saved["step"])
    log = TrainLog(out, first) if workers.rank == 0 else None
    watched = _opened(held_out, min(_HELD_OUT_PAIRS, len(held_out))) if log is not None else []
    numbers = (order(len(pairs), config.optimizer.batch, config.seed, step) for step in range(first, num_steps))
    for step, examples in enumerate(loaded(pairs, numbers, resources.loaders), first):
        if not examples:
            raise TrainingError(
                f"step {step + 1}: none of its {config.optimizer.batch} media can be opened; `tokenmill status` shows "
                "what is wrong with the sources"
            )
        record: Record = {"step": step + 1, "train": learner.step(examples, step), "num_pairs": len(examples)}
        is_last = step + 1 == num_steps
        if watched and ((step + 1) % resources.held_out_steps == 0 or is_last):
            record["held_out"] = learner.loss(watched)
        if log is not None:
            log.append(record)
            if (step + 1) % resources.checkpoint_steps == 0 or is_last:
                log.flush()
                state = {"step": step + 1, "key": key, "dtype": dtype, "learner": learner.state()}
                _save_checkpoint(out, state)
                draw_curves(out, storage.join(out, "loss.png"), _CURVES)
        if on_step:
            on_step(record)
    if workers.rank == 0:
        _export(learner, out, model_uri)
        storage.write_json(storage.join(out, _DONE), {"key": key, "dtype": dtype})
    return model_uri


def _first_weights(config: CaptionerTrainConfig, pairs: Pairs, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and processor before the first step. Raises TrainingError."""
    looks = config.joins is None
    if config.scratch is not None:
        return scratch.make(config.scratch, pairs.texts(), config.seed, looks)
    if config.model is None:
        raise TrainingError("captioner.train needs model (a hub name or a folder) or scratch ({} for its defaults)")
    if config.lora is not None:
        config.lora.check_installed("captioner.train.lora")
    return given.load(config.model, torch.float32 if config.lora is None else dtype, looks)


def _opened(pairs: Pairs, count: int) -> list[Example]:
    return [example for number in range(count) if (example := pairs.load(number)) is not None]


def _export(learner: Learner, out: str, model_uri: str) -> None:
    """Model and processor, in place of what a killed run left there."""
    if storage.is_remote(out):
        with tempfile.TemporaryDirectory(prefix="tokenmill-") as folder:
            learner.save(Path(folder))
            storage.upload_folder(Path(folder), model_uri)
        return
    part = storage.join(out, f"{MODEL}.part")
    for left in (part, model_uri):
        shutil.rmtree(left, ignore_errors=True)
    learner.save(Path(part))
    storage.move(part, model_uri)


def _save_checkpoint(out: str, state: dict[str, Any]) -> None:
    """Written whole or not at all."""
    written = io.BytesIO()
    torch.save(state, written)
    storage.write_bytes(storage.join(out, _CHECKPOINT), written.getvalue())


def _saved(out: str, key: str) -> dict[str, Any] | None:
    """The checkpoint in `out`, if there is one. Raises TrainingError for that of another key, DamagedError."""
    uri = storage.join(out, _CHECKPOINT)
    if not storage.exists(uri):
        return None
    with as_damaged(uri):
        data = io.BytesIO(storage.read_bytes(uri))
        check_zip(data)
        state = torch.load(data, map_location="cpu", weights_only=True)
    if state["key"] != key:
        raise TrainingError(f"{uri}: of another config or of other pairs; give another folder or delete this one")
    return state
