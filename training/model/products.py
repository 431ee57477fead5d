"""Products of float32 matrices on a CPU, by whichever library is quicker there; the rest is torch's.

torch multiplies float32 by MKL, which leaves the AVX-512 units of AMD's processors idle; oneDNN, in torch as well, uses
them: 240 instead of 108 GFLOP/s on one core of an EPYC, at the same error (benchmarks/train_step.py). Which one is
taken depends on the processor alone, so that a training gone on with computes what it would have.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import nn

from tokenmill.storage import cpu


@lru_cache(maxsize=1)
def _has_idle_units() -> bool:
    is_there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return is_there and cpu.leaves_mkl_idle()


def _is_quicker(x: torch.Tensor, y: torch.Tensor) -> bool:
    plain = (torch.Tensor, nn.Parameter)  # and none that is spread over workers
    is_float32 = x.dtype == y.dtype == torch.float32 and x.is_cpu
    return is_float32 and type(x) in plain and type(y) in plain and x.numel() > 0 and _has_idle_units()


def product(a_MK: torch.Tensor, b_KN: torch.Tensor) -> torch.Tensor:
    """`a_MK @ b_KN`, (M, N), without a gradient."""
    if _is_quicker(a_MK, b_KN):
        made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a_MK, b_KN.T, None, "none", [], "")
        return made
    return a_MK @ b_KN


class _Product(torch.autograd.Function):
    """`x_NI @ weight_OI.T`."""

    @staticmethod
    def forward(ctx: Any, x_NI: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        return product(x_NI, weight_OI.T)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_NI, weight_OI = ctx.saved_tensors
        (grad_NO,) = grads
        return (
            product(grad_NO, weight_OI) if ctx.needs_input_grad[0] else None,
            product(grad_NO.T, x_NI) if ctx.needs_input_grad[1] else None,
        )


class Linear(nn.Linear):
    """A linear layer without bias, of that kind; its weights are named as ever."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        if torch.is_autocast_enabled(x.device.type) or not _is_quicker(x, self.weight):
            return super().forward(x)
        made: torch.Tensor = _Product.apply(x.flatten(0, -2), self.weight)
        return made.unflatten(0, x.shape[:-1])


def quicken(model: nn.Module) -> None:
    """Make the linear layers of `model` of that kind, where the processor gains by it."""
    if not _has_idle_units():
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.bias is None:
            module.__class__ = Linear
