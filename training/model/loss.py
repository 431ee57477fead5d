"""Hidden states -> weighted cross-entropy over the whole vocabulary, without ever holding all logits.

184,622 classes at 8,192 tokens would be 6 GB of float32 logits, twice with their gradient. Here a chunk of tokens at a
time makes its logits, its loss and already its gradients, so one chunk is all there is; a block of the vocabulary at a
time is multiplied, so that neither a second copy of the head nor one of its gradient is ever there. 40,960 tokens of
1,024 channels take 1.2 times what hidden states, head and their gradients do (benchmarks/loss_memory.py).

Log-soft-max, loss and the sum of weight gradients over chunks are float32 whatever the products are in: bfloat16 sums
lost quality in Liger (#827). Captions, images, videos and text documents are reported apart, from the same pass.
"""

from typing import Any

import torch

from tokenmill.tokenizer.sequence import Kind
from tokenmill.training.config import LossWeights
from tokenmill.training.model.products import product

_CHUNK_NUMBERS = 1 << 20  # logits per chunk; 4 MB of float32 stay in a CPU's cache
_MIN_CHUNK_BYTES = 1 << 10  # of a chunk's tokens, a class each: fewer read the head too often
_GPU_MIN_CHUNK_BYTES = 1 << 13
_BLOCK = 1 << 13  # classes
_CAST_ONCE_NUMBERS = 1 << 22  # of a head so small a copy in the dtype of the products is kept


def chunk_tokens(vocab_size: int, dtype: torch.dtype, on_gpu: bool) -> int:
    """Of how many tokens there are logits, in `dtype`, at a time."""
    least = (_GPU_MIN_CHUNK_BYTES if on_gpu else _MIN_CHUNK_BYTES) // dtype.itemsize
    return max(least, _CHUNK_NUMBERS // vocab_size)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor, weights_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        nll_N = torch.empty(len(hidden_ND), dtype=torch.float32, device=hidden_ND.device)
        of_hidden, of_weight = (
            torch.zeros_like(each, dtype=torch.float32) if is_needed else None
            for each, is_needed in zip((hidden_ND, weight_VD), ctx.needs_input_grad[:2], strict=True)
        )
        head = weight_VD.to(dtype) if weight_VD.numel() <= _CAST_ONCE_NUMBERS else weight_VD
        num_classes = len(head)
        blocks = [slice(start, start + _BLOCK) for start in range(0, num_classes, _BLOCK)]
        chunk = min(max(1, len(hidden_ND)), chunk_tokens(num_classes, dtype, device != "cpu"))
        logits_CV = torch.empty(chunk, num_classes, dtype=dtype, device=hidden_ND.device)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(hidden_ND), chunk):
                part = slice(start, start + chunk)
                hidden, targets = hidden_ND[part].to(dtype), targets_N[part, None]
                logits = logits_CV[: len(hidden)]
                log_sums = weights_N.new_empty((len(hidden), len(blocks)), dtype=torch.float32)
                for number, block in enumerate(blocks):
                    logits[:, block] = product(hidden, head[block].to(dtype).T)
                    log_sums[:, number] = _log_sum(logits[:, block])
                log_z = log_sums.logsumexp(1, keepdim=True)
                log_p = logits.gather(1, targets).float() - log_z
                nll_N[part] = -log_p.squeeze(1)
                if of_hidden is None and of_weight is None:
                    continue
                weights = weights_N[part, None].float()
                shares = (log_sums - log_z).exp_().mul_(weights)
                for block, share in zip(blocks, shares.split(1, dim=1), strict=True):
                    logits[:, block] = torch.softmax(logits[:, block], dim=1, dtype=torch.float32).mul_(share)
                rows = torch.arange(len(logits), device=logits.device)  # scatter_ copies bfloat16 to float32 and back
                logits[rows, targets.squeeze(1)] = (log_p.expm1() * weights).squeeze(1).to(dtype)
                for block in blocks:
                    grad = logits[:, block]
                    if of_hidden is not None:
                        of_hidden[part] += product(grad, head[block].to(dtype))
                    if of_weight is not None:
                        of_weight[block] += product(grad.T, hidden)
        ctx.grads = of_hidden, of_weight
        ctx.dtypes = hidden_ND.dtype, weight_VD.dtype
        ctx.mark_non_differentiable(nll_N)
        return (nll_N * weights_N).sum(), nll_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        assert ctx.grads is not None, "the gradients of a loss are handed out once"
        made, ctx.grads = ctx.grads, None
        scaled = (
            None if grad is None else grad.mul_(grads[0]).to(dtype)
            for grad, dtype in zip(made, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None)


def _log_sum(logits_CV: torch.Tensor) -> torch.Tensor:
    """Logarithm of the sum of exponentials, float32 (C,); by log-soft-max, which takes half as long as logsumexp."""
    log_p = torch.log_softmax(logits_CV, dim=1, dtype=torch.float32)
    return logits_CV[:, 0].float() - log_p[:, 0]


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
