"""A pack shared by several workers, each with some of its tokens: context parallelism, and what tensor parallelism
keeps between the layers.

Only attention relates tokens to each other. There the workers trade: each gives up its tokens of most heads and gets
all tokens of a few, by one all-to-all before and one after (DeepSpeed Ulysses, arXiv 2309.14509). So documents are kept
apart by the very layout that one worker alone has (training/model/attention.py), all workers have as much to do
whatever the lengths of documents, and of 131,072 tokens each holds its share.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.nn import functional


class Split:
    """This worker's part of each pack: piece `number` of `count` equal ones, in the order of tokens.

    `context`: the workers that trade heads, in the order of their tokens; `pack`: all that share the pack.
    """

    def __init__(self, number: int, count: int, context: dist.ProcessGroup, pack: dist.ProcessGroup):
        self.number, self.count = number, count
        self.context, self.pack = context, pack
        self.num_tokens = 0  # of the pack that passes, before it was made longer

    def padded(self, x_BT: torch.Tensor, value: int) -> torch.Tensor:
        """The same, made longer by `value` until it can be shared out."""
        self.num_tokens = x_BT.shape[1]
        return functional.pad(x_BT, (0, -self.num_tokens % self.count), value=value)

    def own(self, x_BT: torch.Tensor) -> torch.Tensor:
        """(B, T, ...) -> (B, T / count, ...): this worker's."""
        size = x_BT.shape[1] // self.count
        return x_BT[:, self.number * size : (self.number + 1) * size]

    def own_of_context(self, x_BT: torch.Tensor) -> torch.Tensor:
        """(B, T, ...) -> (B, T / workers that trade, ...): what layers see of it, whose heads are shared beside."""
        num = self.context.size()
        size = x_BT.shape[1] // num
        place = self.number // (self.count // num)
        return x_BT[:, place * size : (place + 1) * size]

    def whole(self, x_BT: torch.Tensor) -> torch.Tensor:
        """(B, T / count) -> (B, T) of all workers, without gradient."""
        parts = [torch.empty_like(x_BT) for _ in range(self.count)]
        dist.all_gather(parts, x_BT.contiguous(), group=self.pack)
        return torch.cat(parts, dim=1)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Over the workers of the pack, in place."""
        dist.all_reduce(x, group=self.pack)
        return x

    def dropout(self, x_BTD: torch.Tensor, p: float, is_training: bool) -> torch.Tensor:
        """Of this worker's tokens what falls where the whole pack is on one worker: that draws for all of them."""
        if not is_training or not p:
            return x_BTD
        batch, _, width = x_BTD.shape
        drawn = functional.dropout(x_BTD.new_ones(batch, self.num_tokens, width), p)
        size = x_BTD.shape[1]
        mine = drawn[:, self.number * size : (self.number + 1) * size]
        return x_BTD * functional.pad(mine, (0, 0, 0, size - mine.shape[1]))

    def by_heads(self, x_BHTC: torch.Tensor) -> torch.Tensor:
        """(B, H, T / n, C) -> (B, H / n, T, C), n workers that trade; keys and values of too few heads are repeated."""
        num = self.context.size()
        if num == 1:
            return x_BHTC
        num_heads = x_BHTC.shape[1]
        return _traded(x_BHTC.repeat_interleave(math.lcm(num_heads, num) // num_heads, 1), self.context, 1, 2)

    def by_tokens(self, x_BTHC: torch.Tensor) -> torch.Tensor:
        """The way back: (B, T, H / n, C) -> (B, T / n, H, C)."""
        return x_BTHC if self.context.size() == 1 else _traded(x_BTHC, self.context, 1, 2)


class SplitDropout(nn.Module):
    """In the place of a layer's nn.Dropout."""

    def __init__(self, p: float, split: Split):
        super().__init__()
        self.p, self._split = p, split

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """As `Split.dropout`."""
        return self._split.dropout(x_BTD, self.p, self.training)


def whole_weight(weight: torch.Tensor) -> torch.Tensor:
    """A weight that tensor parallelism keeps in parts, whole for this worker's tokens; others as they are."""
    if not isinstance(weight, DTensor):
        return weight
    return weight.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])


class _Trade(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup, given: int, taken: int) -> torch.Tensor:
        ctx.group, ctx.given, ctx.taken = group, given, taken
        num = group.size()
        parts = x.unflatten(given, (num, -1)).movedim(given, 0).contiguous()
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=group)
        return received.movedim(0, taken).flatten(taken, taken + 1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _traded(grads[0], ctx.group, ctx.taken, ctx.given), None, None, None


def _traded(x: torch.Tensor, group: dist.ProcessGroup, given: int, taken: int) -> torch.Tensor:
    """Each worker gives the parts of dimension `given` to the others, and joins what it gets along `taken`."""
    return _Trade.apply(x, group, given, taken)
