"""Weights and optimizer state -> a folder per checkpoint, and back: exact, and free of the number of workers.

    run/checkpoints/step_000123/    files of training/checkpoints/shard_files.py, and meta.json

Each worker copies what it holds to memory, which is all that a step waits for, and writes it while the next steps go
on. `meta.json` is written last, when all files are there, and deleted first: a folder without it is the remains of a
crash and is never read. The state of the data is the step alone (training/data/plan.py), dropout is seeded by pack, and
learning rates follow from the step; beside these only the losses that the newest ones are measured by
(training/run/guard.py) need saving, in `meta.json`.
"""

import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict
from torch.optim import Optimizer

from tokenmill import storage
from tokenmill.storage.checksums import damaged_file
from tokenmill.storage.errors import DamagedError
from tokenmill.storage.failures import as_damaged
from tokenmill.training.checkpoints.folders import META, all_folders, complete_steps, folder_uri, latest
from tokenmill.training.checkpoints.shard_files import Reader, Writer

warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # of a worker alone, in whichever thread

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_OLD_WEIGHTS = "model.safetensors"  # of releases that wrote the whole model


class Checkpoints:
    """The checkpoints of a run, as one of its workers writes and reads them. Every worker must make the same calls."""

    def __init__(
        self,
        run_uri: str,
        model: nn.Module,
        optimizers: list[Optimizer],
        meta: dict[str, Any],
        keep: int,
        world: int = 1,
    ):
        self._run_uri, self._model, self._optimizers = run_uri, model, optimizers
        self._meta, self._keep, self._world = meta, keep, world
        # of its own, because these workers talk while those train
        self._group: Any = dist.new_group(backend="gloo") if world > 1 else None
        self._stager = BlockingAsyncStager()
        self._writing: Future[Any] | None = None

    def resume(self) -> int:
        """Restore the newest complete one; the steps that it has done, 0 without one. Raises TrainingError for one of
        another plan, DamagedError.
        """
        if step := latest(self._run_uri, self._meta["plan"]):
            self.load(step)
        return step

    def begin(self, step: int, seen: dict[str, Any] | None = None) -> None:
        """Write the checkpoint after `step` steps, and delete all but the newest; returns when the state is copied. One
        that is still being written is waited for. `seen`, of JSON, is what `seen` gives back after a resume.
        """
        self.wait()
        state = self._state()
        uri = folder_uri(self._run_uri, step)
        with _plainly():
            self._writing = dcp.async_save(  # type: ignore[assignment]
                _nested(state),
                storage_writer=Writer(uri, state, self._world, partial(self._complete, step, seen or {})),
                async_stager=self._stager,
                process_group=self._group,
                no_dist=self._world == 1,
            )

    def seen(self, step: int) -> dict[str, Any]:
        """What was given with the checkpoint after `step` steps; nothing before the first, and by older releases."""
        meta = storage.join(folder_uri(self._run_uri, step), META)
        known: dict[str, Any] = storage.read_json(meta).get("seen", {}) if step else {}
        return known

    def wait(self) -> None:
        """Until all that was begun is complete. Raises what kept it from being written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            with _plainly():
                writing.result()

    def load(self, step: int) -> None:
        """Restore what was written after `step` steps, by whatever number of workers. Raises DamagedError."""
        uri = folder_uri(self._run_uri, step)
        with as_damaged(uri):
            if storage.exists(storage.join(uri, _OLD_WEIGHTS)):
                self._load_old(uri)
                return
            reader = Reader(uri)
            self._make_room(reader.tensors)
            with _plainly():
                dcp.load(
                    _nested(self._state()), storage_reader=reader, process_group=self._group, no_dist=self._world == 1
                )

    def _state(self) -> dict[str, torch.Tensor]:
        """All that is saved, by name; what is written into these tensors changes the model and its optimizers. Weights
        that do not learn are those of the model that a training starts from.
        """
        frozen = {name for name, weight in self._model.named_parameters() if not weight.requires_grad}
        weights = self._model.state_dict().items()
        state = {f"model.{name}": tensor.detach() for name, tensor in weights if name not in frozen}
        for name, kept in self._kept():
            state |= {f"optimizer.{name}.{kind}": kept[kind].view(kept[kind].shape or 1) for kind in sorted(kept)}
        return state

    def _kept(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """What the optimizers keep, by the name of the parameter."""
        by_parameter = {
            id(parameter): optimizer.state[parameter]
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        for name, parameter in self._learning():
            yield name, by_parameter[id(parameter)]

    def _learning(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in self._model.named_parameters() if parameter.requires_grad]

    def _make_room(self, tensors: dict[str, Any]) -> None:
        """Give the optimizers, which keep nothing before their first step, what is in the checkpoint."""
        kinds: dict[str, list[str]] = {}
        for place in tensors:
            name, _, kind = place.removeprefix("optimizer.").rpartition(".")
            if place.startswith("optimizer."):
                kinds.setdefault(name, []).append(kind)
        for (name, kept), (_, parameter) in zip(self._kept(), self._learning(), strict=True):
            for kind in kinds.get(name, []):
                is_alike = tensors[f"optimizer.{name}.{kind}"]["shape"] == list(parameter.shape)
                made = torch.zeros_like(parameter) if is_alike else torch.zeros((), device=parameter.device)
                kept[kind] = made.detach()

    def _load_old(self, uri: str) -> None:
        """What a release before sharded checkpoints wrote: the whole model, and all states by torch.save."""
        with storage.local_folder(uri) as folder:
            if (broken := damaged_file(str(folder))) is not None:
                raise DamagedError(storage.join(uri, broken.rsplit("/", 1)[1]))
            weights: dict[str, Any] = dict(load_file(folder / _OLD_WEIGHTS))
            state = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
        set_state_dict(self._model, self._optimizers, model_state_dict=weights, optim_state_dict=state, options=_WHOLE)

    def _complete(self, step: int, seen: dict[str, Any]) -> None:
        """All files of a checkpoint are there: say so, and let older ones go."""
        storage.write_json(
            storage.join(folder_uri(self._run_uri, step), META), {"step": step, "seen": seen} | self._meta
        )
        kept = {folder_uri(self._run_uri, each) for each in complete_steps(self._run_uri)[-self._keep :]}
        for uri in set(all_folders(self._run_uri)) - kept:
            if storage.exists(mark := storage.join(uri, META)):
                storage.delete_file(mark)
            storage.delete_folder(uri)


def _nested(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The same for DCP, which gives a tensor in a dict this name, and logs each one that stands in none."""
    parts: dict[str, Any] = {"model": {}, "optimizer": {}}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    return parts


@contextmanager
def _plainly() -> Iterator[None]:
    """What a worker raises, as it was: DCP wraps it."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error
