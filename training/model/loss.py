"""Hidden states -> weighted cross-entropy over the whole vocabulary, without ever holding all logits.

184,622 classes at 8,192 tokens would be 6 GB of float32 logits, twice with their gradient. Here a chunk of tokens at a
time makes its logits, its loss and already its gradients, so one chunk is all there is. Log-soft-max, loss and the sum
of weight gradients over chunks are float32 whatever the products are in: bfloat16 sums lost quality in Liger (#827).
Captions, images, videos and text documents are reported apart, from the same pass.
"""

from typing import Any

import torch

from tokenmill.tokenizer.sequence import Kind
from tokenmill.training.config import LossWeights

_CHUNK_NUMBERS = 1 << 20  # logits per chunk; 4 MB of float32 stay in a CPU's cache
_MIN_CHUNK_TOKENS = 64


def chunk_tokens(vocab_size: int) -> int:
    """Of how many tokens there are logits at a time."""
    return max(_MIN_CHUNK_TOKENS, _CHUNK_NUMBERS // vocab_size)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor, weights_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        weight = weight_VD.to(dtype)
        is_training = any(ctx.needs_input_grad)
        nll_N = torch.empty(len(hidden_ND), dtype=torch.float32, device=hidden_ND.device)
        grad_hidden = torch.empty_like(hidden_ND) if is_training else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if is_training else None
        chunk = chunk_tokens(len(weight_VD))
        with torch.autocast(device, enabled=False):
            for start in range(0, len(hidden_ND), chunk):
                part = slice(start, start + chunk)
                hidden, targets = hidden_ND[part].to(dtype), targets_N[part, None]
                log_p = torch.log_softmax(hidden @ weight.T, dim=-1, dtype=torch.float32)
                nll_N[part] = -log_p.gather(1, targets).squeeze(1)
                if grad_hidden is None or grad_weight is None:
                    continue
                grad = log_p.exp_()
                grad.scatter_add_(1, targets, grad.new_full((1, 1), -1.0).expand(len(targets), 1))
                grad = grad.mul_(weights_N[part, None]).to(dtype)
                grad_hidden[part] = grad @ weight
                grad_weight += grad.T @ hidden
        if grad_weight is not None:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight_VD.dtype))
        ctx.mark_non_differentiable(nll_N)
        return (nll_N * weights_N).sum(), nll_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0]
        return grad_hidden * scale.to(grad_hidden.dtype), grad_weight * scale.to(grad_weight.dtype), None, None


def linear_cross_entropy(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor, weights_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of `hidden_ND @ weight_VD.T` against `targets_N` (int64).

    Returns the sum weighted by `weights_N` (float32; 0 ignores a token), float32 scalar with gradients for hidden and
    weight, and the unweighted loss of each token, float32 (N,), without gradient.
    """
    return _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, targets_N, weights_N)


def next_tokens(
    ids_BT: torch.Tensor, kinds_BT: torch.Tensor, documents_BT: torch.Tensor, weights: LossWeights
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What each token must predict: ids int64, kinds int64 and loss weights float32, all (B, T).

    The weight is `weights.text` for captions, answers and text documents and `weights.vision` for all else; 0 for
    questions, for padding and at the end of a document.
    """
    targets = ids_BT.roll(-1, 1).long()
    kinds = kinds_BT.roll(-1, 1).long()
    is_same = documents_BT == documents_BT.roll(-1, 1)
    is_same[:, -1] = False
    is_text = (kinds == Kind.TEXT) | (kinds == Kind.DOCUMENT)
    weights_BT = torch.where(is_text, weights.text, weights.vision)
    return targets, kinds, torch.where(is_same & (documents_BT >= 0) & (kinds != Kind.PROMPT), weights_BT, 0.0)


def sums_by_kind(nll_N: torch.Tensor, kinds_N: torch.Tensor, weights_N: torch.Tensor) -> torch.Tensor:
    """float32 (2, number of kinds): sums of the unweighted loss, and numbers of tokens, where the weight is not 0."""
    counted = (weights_N > 0).float()
    sums = nll_N.new_zeros(2, len(Kind))
    return sums.index_add_(1, kinds_N, torch.stack([nll_N * counted, counted]))
