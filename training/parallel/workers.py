"""One model on several workers: whole copies that average gradients (DDP), or weights spread over all of them (FSDP2).

Both take the mean of gradients over workers and need as many forward passes on each. 8.5 billion weights with
gradients and AdamW state are 136 GB in float32: spread over eight GPUs that is 17 GB each, copied it fits none.

Workers stand in groups that share packs (`resources.parallel`): in a group first those of tensor parallelism, then
those of context parallelism. To DDP and FSDP2 a worker with some of a pack's tokens is like one with a pack.
"""

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tokenmill.training.config import TrainConfig
from tokenmill.training.job import Asked
from tokenmill.training.model.flops import peak_per_s
from tokenmill.training.model.model import PackLoss
from tokenmill.training.model.split import Split, SplitDropout
from tokenmill.training.parallel.memory import check_room, needed
from tokenmill.training.parallel.tensor import check_shares, share_layers
from tokenmill.training.resources import Parallel, TrainResources

# of weights in two kinds of parts, whenever one is made whole: that it takes two messages
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)


class Notices(Protocol):
    """What one of the workers is asked from outside (training/run/notices.py)."""

    def take(self) -> Asked:
        """What was asked since the last call."""

    def say_stopped(self) -> None:
        """It stopped, and its checkpoint is complete."""


class Workers:
    """This worker's place among `world`, and the model as it stands there. Raises TrainingError for a model that
    cannot be shared out as `resources` say, or that a GPU has no room for.
    """

    def __init__(
        self,
        model: PackLoss,
        config: TrainConfig,
        resources: TrainResources,
        rank: int,
        world: int,
        device: torch.device,
        notices: Notices | None = None,
    ):
        check_room(needed(model.lm.config, config, resources, world), device, resources)
        parallel = resources.parallel
        is_spread = world > 1 and (resources.spread_model or parallel.tensor > 1)
        self.rank, self.world, self.device = rank, world, device
        self.notices, self.asked = notices, Asked.NOTHING  # the latter of all workers, at the newest step
        self.model = model
        self.forward: nn.Module = model
        if not is_spread:  # what is spread goes there in parts
            model.to(device)
        self.group, place = divmod(rank, parallel.per_pack)  # which packs are its own
        self.num_groups, self.is_first = world // parallel.per_pack, not place  # one counts what a group shares
        self.num_averaged = world // parallel.tensor  # of gradients
        if world == 1:
            return
        mesh = self._shared(model, parallel, place) if parallel.per_pack > 1 else None
        if is_spread:
            mesh = init_device_mesh(device.type, (world,)) if mesh is None else mesh
            for layer in model.lm.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
        else:
            device_ids = [device] if device.type == "cuda" else None
            self.forward = DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)

    def _shared(self, model: PackLoss, parallel: Parallel, place: int) -> DeviceMesh:
        """Let `model` take this worker's part of each pack; `place`: the worker's in its group. Returns the workers
        over whom weights may be spread.
        """
        check_shares(model.lm, parallel)
        shape = (self.num_groups, parallel.context, parallel.tensor)
        mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=("data", "context", "tensor"))
        pack = mesh["context", "tensor"]._flatten("pack").get_group()
        model.split = Split(place, parallel.per_pack, mesh.get_group("context"), pack)
        for module in list(model.lm.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Dropout):  # of the layers, and of LoRA
                    setattr(module, name, SplitDropout(child.p, model.split))
        if parallel.tensor > 1:
            share_layers(model.lm, mesh["tensor"])
        return mesh["data", "context"]._flatten("spread")

    def synchronized(self, is_last: bool) -> AbstractContextManager[None]:
        """Around a forward and backward pass: gradients cross between workers in the last one of a step only."""
        if isinstance(self.forward, FSDPModule):
            self.forward.set_requires_gradient_sync(is_last)
        elif isinstance(self.forward, DistributedDataParallel) and not is_last:
            return self.forward.no_sync()
        return nullcontext()

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """`value` summed over all workers, in place."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def norm(self, clip_norm: float) -> float:
        """Of the gradients of all weights, which are scaled down to `clip_norm` where it is more."""
        norm = nn.utils.clip_grad_norm_(self.forward.parameters(), clip_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def peak_per_s(self, dtype: str) -> float:
        """Operations a second that all devices together could do; not a number where that of one is not known."""
        return float(self.sum(torch.tensor(peak_per_s(self.device, dtype), dtype=torch.float64, device=self.device)))

    def agree(self, weight: float) -> torch.Tensor:
        """`weight` summed over all workers; the same message tells them what one of them was asked."""
        asked = self.notices.take() if self.notices is not None else Asked.NOTHING
        values = [weight, asked == Asked.SAVE, asked == Asked.STOP]
        total, save, stop = self.sum(torch.tensor(values, dtype=torch.float64, device=self.device))
        self.asked = Asked.STOP if stop else Asked.SAVE if save else Asked.NOTHING
        return total
