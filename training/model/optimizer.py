"""Gradients -> updates: AdamW for all weights, or Muon for the matrices of the layers and AdamW for the rest.

Muon (Jordan et al. 2024; Liu et al., arXiv 2502.16982) moves a matrix by the orthogonal one nearest to its momentum,
found by five Newton-Schulz steps. On the demo it learns in 360 steps what takes AdamW 2,400. `torch.optim.Muon`
computes them in bfloat16 whatever the training's dtype (a CPU without such units emulates it), all of them on every
worker, and cannot take weights that FSDP2 spread. Here they are in the training's dtype, and each worker does its
share; the updates are torch's (tests/training/model/test_optimizer.py).
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Optimizer

from tokenmill.training.config import OptimizerConfig
from tokenmill.training.model.model import PackLoss

_MOMENTUM = 0.95
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: singular values end between 0.7 and 1.2
_NEWTON_SCHULZ_STEPS = 5
_STACKED_NUMBERS = 1 << 22  # of small matrices that one worker orthogonalizes at once


def make_optimizers(
    model: PackLoss, config: OptimizerConfig, dtype: torch.dtype, rank: int = 0, world: int = 1
) -> list[Optimizer]:
    """AdamW and, with `config.muon_lr`, Muon; weights of norms do not decay. `dtype`: of Muon's matrix products."""
    matrices: list[nn.Parameter] = []
    by_adam = [p for p in model.parameters() if p.requires_grad]
    if config.muon_lr is not None:
        ends = {id(end.weight) for end in (model.lm.get_input_embeddings(), model.lm.get_output_embeddings())}
        matrices = [p for p in by_adam if p.ndim == 2 and id(p) not in ends]
        by_adam = [p for p in by_adam if p.ndim != 2 or id(p) in ends]
    groups = [
        {"params": [p for p in by_adam if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in by_adam if p.ndim < 2], "weight_decay": 0.0},
    ]
    made: list[Optimizer] = [AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)]
    if config.muon_lr is not None:
        made.append(Muon(matrices, config.muon_lr, config.weight_decay, dtype, rank, world))
    return made


def set_learning_rate(optimizers: list[Optimizer], config: OptimizerConfig, share: float) -> None:
    """`share`, 0..1, of the rates of `config` for the next step."""
    for optimizer in optimizers:
        rate = config.muon_lr if isinstance(optimizer, Muon) else config.lr
        assert rate is not None
        for group in optimizer.param_groups:
            group["lr"] = rate * share


def schedule(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Share of the learning rate at optimizer step `step` (from 0): linear warm-up times a cosine or a line that ends
    at zero (Emu3 paper 3.3; linear in its quality fine-tuning, 3.4), or times one.
    """
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    after = {
        "cosine": 0.5 * (1 + math.cos(math.pi * step / num_steps)),
        "linear": 1 - step / num_steps,
        "constant": 1.0,
    }
    return warmup * after[config.schedule]


class Muon(Optimizer):
    """Momentum, orthogonalized. For matrices only; whole on each worker, or spread by FSDP2."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        dtype: torch.dtype,
        rank: int = 0,
        world: int = 1,
    ):
        self._dtype, self._rank, self._world = dtype, rank, world
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update. Every worker must call it; gradients must be the mean over workers already."""
        assert closure is None
        for group in self.param_groups:
            same: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                same[matrix.shape].append(matrix)
            for shape, matrices in same.items():
                each = max(1, min(_STACKED_NUMBERS // shape.numel(), -(-len(matrices) // self._world)))
                for start in range(0, len(matrices), each * self._world):
                    self._update(matrices[start : start + each * self._world], each, group)

    def _update(self, matrices: list[nn.Parameter], each: int, group: dict[str, Any]) -> None:
        """Move up to `each` matrices of one shape for each worker."""
        wanted = [self._momentum(matrix) for matrix in matrices]
        mine = wanted[self._rank * each : (self._rank + 1) * each]
        rows, columns = matrices[0].shape
        own = wanted[0].new_zeros((each, rows, columns), dtype=self._dtype)
        if mine:
            own[: len(mine)] = orthogonalized(torch.stack(mine).to(self._dtype))
        parts = [own]
        if self._world > 1:
            parts = [torch.empty_like(own) for _ in range(self._world)]
            dist.all_gather(parts, own)
        rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
        for matrix, direction in zip(matrices, torch.cat(parts), strict=False):
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            whole = direction.to(matrix.dtype)
            if isinstance(matrix, DTensor):
                whole = distribute_tensor(whole, matrix.device_mesh, matrix.placements, src_data_rank=None)
            matrix.add_(whole, alpha=-rate)

    def _momentum(self, matrix: nn.Parameter) -> Tensor:
        """Nesterov's momentum of a matrix with the new gradient, whole on every worker."""
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        state["momentum"].lerp_(matrix.grad, 1 - _MOMENTUM)
        ahead = matrix.grad.lerp(state["momentum"], _MOMENTUM)
        return ahead.full_tensor() if isinstance(ahead, DTensor) else ahead


def orthogonalized(x_BMN: Tensor) -> Tensor:
    """About U V^T of each matrix's singular value decomposition U S V^T, in the dtype given; zero stays zero."""
    a, b, c = _NEWTON_SCHULZ
    is_tall = x_BMN.shape[1] > x_BMN.shape[2]
    x = x_BMN.transpose(1, 2) if is_tall else x_BMN
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if is_tall else x
