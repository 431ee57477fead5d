"""Workers that train one vision tokenizer together: each sees its share of a step's batch, all take the same update.

Gradients are averaged, and codebooks are moved by the vectors of all workers, so the copies stay equal without being
compared. A pure L2 step computes the same whatever the number of workers; losses over pairs of pictures pair those of
one worker.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from tokenmill.storage.errors import TrainingError


@dataclass(frozen=True)
class Workers:
    """This worker's place, `rank` of `world`. With more than one a process group must be up."""

    rank: int = 0
    world: int = 1

    def share(self, batch: Tensor) -> Tensor:
        """This worker's part of (B, ...); B must be a multiple of `world`. Raises TrainingError."""
        if len(batch) % self.world:
            raise TrainingError(
                f"{len(batch)} samples a step cannot be shared by {self.world} workers; change tokenizer.train.batch "
                "(a clip counts as 4) or tokenizer.resources.num_workers"
            )
        return batch[self.rank :: self.world]

    def average(self, tensors: list[Tensor]) -> None:
        """Make each the mean over the workers, in place, in one message."""
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.world
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()

    def gather(self, tensor: Tensor) -> Tensor:
        """(N, ...) of all workers, one behind the other: (world * N, ...)."""
        if self.world == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)
