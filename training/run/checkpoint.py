"""Weights and optimizer state -> a folder per checkpoint, and back: exact, and free of the number of workers.

    run/checkpoints/step_000123/model.safetensors, optimizer.pt, meta.json

`meta.json` is written last and deleted first: a folder without it is the remains of a crash and is never read. The
state of the data is the step alone (training/data/plan.py), dropout is seeded by pack, so nothing else needs saving.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from tokenmill import storage
from tokenmill.storage.checksums import damaged_file, write_checksums
from tokenmill.storage.errors import DamagedError, TrainingError
from tokenmill.storage.failures import as_damaged

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@contextmanager
def _written_to(uri: str) -> Iterator[Path]:
    """A local folder whose files end up at `uri`: that folder itself when it is local."""
    if not storage.is_remote(uri):
        folder = Path(storage.absolute(uri))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
        storage.upload_folder(Path(name), uri)


def folder_uri(run_uri: str, step: int) -> str:
    """Where the checkpoint after `step` steps stands."""
    return storage.join(run_uri, "checkpoints", f"step_{step:06d}")


def save(
    run_uri: str,
    step: int,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    meta: dict[str, Any],
    keep: int,
    rank: int = 0,
) -> None:
    """Write the checkpoint after `step` steps and delete all but the newest `keep`.

    Every worker must call it; rank 0 writes.
    """
    weights, state = get_state_dict(model, optimizers, options=_WHOLE)
    if rank != 0:
        return
    uri = folder_uri(run_uri, step)
    with _written_to(uri) as folder:
        save_file(_tensors(weights), folder / "model.safetensors")
        torch.save(state, folder / "optimizer.pt")
        write_checksums(folder)
    storage.write_json(storage.join(uri, "meta.json"), {"step": step} | meta)
    for old in _complete_steps(run_uri)[:-keep]:
        filesystem, path = storage.filesystem(storage.join(folder_uri(run_uri, old), "meta.json"))
        filesystem.delete_file(path)
        storage.delete_folder(folder_uri(run_uri, old))


def latest(run_uri: str, plan_hash: str) -> int:
    """Steps done by the newest complete checkpoint; 0 without one.

    Raises TrainingError when it belongs to another plan.
    """
    steps = _complete_steps(run_uri)
    if not steps:
        return 0
    meta = storage.read_json(storage.join(folder_uri(run_uri, steps[-1]), "meta.json"), "plan")
    if meta["plan"] != plan_hash:
        raise TrainingError(
            f"{folder_uri(run_uri, steps[-1])}: made with plan {meta['plan']}, this run's is {plan_hash}; "
            "train into another folder, or delete the checkpoints"
        )
    return steps[-1]


def load(run_uri: str, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Restore what `save` wrote after `step` steps. Every worker must call it. Raises DamagedError."""
    with as_damaged(folder_uri(run_uri, step)):
        with storage.local_folder(folder_uri(run_uri, step)) as folder:
            if (broken := damaged_file(str(folder))) is not None:
                raise DamagedError(storage.join(folder_uri(run_uri, step), Path(broken).name))
            weights: dict[str, Any] = dict(load_file(folder / "model.safetensors"))
            state = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
        set_state_dict(model, optimizers, model_state_dict=weights, optim_state_dict=state, options=_WHOLE)


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """All weights by name, on the CPU; empty but on rank 0. Every worker must call it."""
    return _tensors(get_model_state_dict(model, options=_WHOLE))


def _tensors(weights: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value.contiguous() for name, value in weights.items()}


def _complete_steps(run_uri: str) -> list[int]:
    folder = storage.join(run_uri, "checkpoints")
    names = [name for name in storage.list_names(folder) if name.startswith("step_")]
    return sorted(
        int(name.removeprefix("step_")) for name in names if storage.exists(storage.join(folder, name, "meta.json"))
    )
