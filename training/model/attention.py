"""Which tokens of a pack see which: causal attention inside each document, none across documents.

Emu3 does not say whether packed documents see each other; here they never do, so that packing changes no loss
(tests/training/model/test_model.py: equal to one by one within 1e-5). On a GPU this is one FlexAttention block mask
per pack, built from the documents' borders in (T / 128)^2 steps instead of T^2. On a CPU documents are laid out one per
row and attended to by three plain products: 3.2 times faster, forward and backward, than `scaled_dot_product_attention`
in bfloat16 on 95-token documents. Where that would leave most of the rows empty, as with a page of text among small
pictures, documents of like length have rows of their own. Attention probabilities get no dropout, as FlexAttention
has none.
"""

from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface

from tokenmill.training.model.split import Split

NAME = "tokenmill_documents"  # the attention implementation's name in transformers

_BLOCK = 128
_PLAIN_MAX_TOKENS = 512  # longer documents would hold too large a matrix of probabilities
_MAX_EMPTY = 6  # slots per token, above which documents are laid out by length


@dataclass(frozen=True)
class DocumentRows:
    """Where each token of flattened packs (B * T) stands when every document has a row of `longest` slots."""

    tokens: torch.Tensor  # int64 (M,): places of the M tokens that are not padding
    slots: torch.Tensor  # int64 (M,): their places among num_documents * longest slots
    num_documents: int
    longest: int

    def spread(self, x_NC: torch.Tensor) -> torch.Tensor:
        """(B * T, C) -> (num_documents, longest, C), zero where a row is longer than its document."""
        empty = x_NC.new_zeros(self.num_documents * self.longest, x_NC.shape[1])
        filled = empty.index_copy(0, self.slots, x_NC.index_select(0, self.tokens))
        return filled.view(self.num_documents, self.longest, x_NC.shape[1])

    def collect(self, x_DLC: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """The inverse: (num_documents, longest, C) -> (num_tokens, C), zero where there is padding."""
        x_SC = x_DLC.reshape(-1, x_DLC.shape[-1])
        return x_SC.new_zeros(num_tokens, x_SC.shape[1]).index_copy(0, self.tokens, x_SC.index_select(0, self.slots))


Layout = DocumentRows | tuple[DocumentRows, ...] | BlockMask


def attend_mask(documents_BT: torch.Tensor, is_flex: bool | None = None) -> Layout:
    """What the layers need to keep the documents of a pack apart, on the device of `documents_BT`.

    `documents_BT`: int32, rising from 0 along each row, negative for padding at its end.
    `is_flex`: null takes the block mask on a GPU and rows on a CPU.
    """
    if documents_BT.is_cuda if is_flex is None else is_flex:
        return _block_mask(documents_BT)
    batch, num_tokens = documents_BT.shape
    flat = documents_BT.reshape(-1).long()
    offset = torch.arange(batch, device=flat.device).repeat_interleave(num_tokens) * (int(flat.max()) + 1)
    tokens = torch.nonzero(flat >= 0).squeeze(1)
    _, rows, lengths = torch.unique_consecutive((flat + offset)[tokens], return_inverse=True, return_counts=True)
    if not len(lengths) or len(lengths) * int(lengths.max()) <= _MAX_EMPTY * len(tokens):
        return _in_rows(tokens, rows, lengths)
    classes = torch.log2(lengths.double()).ceil()  # from a power of two to the next, so rows are half full at least
    parts = []
    for number in torch.unique(classes):
        mine = classes == number
        of_part = mine[rows]
        parts.append(_in_rows(tokens[of_part], (torch.cumsum(mine, 0) - 1)[rows[of_part]], lengths[mine]))
    return tuple(parts)


def _in_rows(tokens: torch.Tensor, rows: torch.Tensor, lengths: torch.Tensor) -> DocumentRows:
    """`rows`: the document of each of `tokens`, int64, rising from 0; `lengths`: tokens of each document."""
    starts = torch.cumsum(lengths, 0) - lengths
    longest = int(lengths.max()) if len(lengths) else 1
    place_in_row = torch.arange(len(tokens), device=tokens.device) - starts[rows]
    return DocumentRows(tokens, rows * longest + place_in_row, len(lengths), longest)


def _block_mask(documents_BT: torch.Tensor) -> BlockMask:
    batch, num_tokens = documents_BT.shape
    last = int(documents_BT.max()) + 1
    documents = torch.where(documents_BT < 0, last, documents_BT)  # padding is one more document: ids keep rising
    num_blocks = -(-num_tokens // _BLOCK)
    tail = documents[:, -1:].expand(batch, num_blocks * _BLOCK - num_tokens)
    blocks = torch.cat([documents, tail], dim=1).view(batch, num_blocks, _BLOCK)
    first, final = blocks[:, :, 0], blocks[:, :, -1]
    earlier = torch.ones(num_blocks, num_blocks, dtype=torch.bool, device=documents.device).tril()
    seen = earlier & (final[:, None, :] >= first[:, :, None])
    one_document = (first == final)[:, :, None] & (first == final)[:, None, :]
    full = seen & earlier.tril(-1) & one_document & (first[:, :, None] == first[:, None, :])

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        return (q >= kv) & (documents[b, q] == documents[b, kv])

    return BlockMask.from_kv_blocks(
        *_ordered(seen & ~full),
        *_ordered(full),
        BLOCK_SIZE=_BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(num_tokens, num_tokens),
    )


def _ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """bool (B, Q, KV) -> how many KV blocks each Q block has, int32 (B, 1, Q), and which, int32 (B, 1, Q, KV)."""
    counts = blocks.sum(-1, dtype=torch.int32)
    which = torch.argsort(blocks.to(torch.int8), dim=-1, descending=True, stable=True).to(torch.int32)
    return counts[:, None], which[:, None]


class _PlainAttention(torch.autograd.Function):
    """Causal attention over (D, H, L, C) by three products forward and four backward."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
        longest = q.shape[-2]
        future = torch.full((longest, longest), float("-inf"), device=q.device).triu(1)
        scores = torch.matmul(q, k.transpose(-1, -2)).float().mul_(scaling).add_(future)
        probabilities = torch.softmax(scores, dim=-1).to(q.dtype)
        out = torch.matmul(probabilities, v)
        ctx.save_for_backward(q, k, v, probabilities, out)
        ctx.scaling = scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, probabilities, out = ctx.saved_tensors
        (grad,) = grads
        grad_v = torch.matmul(probabilities.transpose(-1, -2), grad)
        delta = (grad.float() * out.float()).sum(-1, keepdim=True)
        grad_scores = torch.matmul(grad, v.transpose(-1, -2)).float().sub_(delta).mul_(probabilities).mul_(ctx.scaling)
        grad_scores = grad_scores.to(q.dtype)
        return torch.matmul(grad_scores, k), torch.matmul(grad_scores.transpose(-1, -2), q), grad_v, None


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=False)


def attend_documents(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    documents: Layout,
    split: Split | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The attention implementation `NAME` of transformers; the model's forward passes `documents` and `split` through.

    query: (B, H, T, C); key, value: (B, H_kv, T, C). Returns (B, T, H, C). With `split`, T are this worker's tokens,
    and `documents` those of the whole pack.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)
    if split is None:
        return _attend(query, key, value, scaling, documents), None
    query, key, value = (split.by_heads(x) for x in (query, key, value))
    return split.by_tokens(_attend(query, key, value, scaling, documents)), None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, documents: Layout
) -> torch.Tensor:
    if isinstance(documents, BlockMask):
        flex = _compiled_flex() if query.is_cuda else flex_attention
        is_grouped = query.shape[1] != key.shape[1]
        out = flex(query, key, value, block_mask=documents, scale=scaling, enable_gqa=is_grouped)
        return out.transpose(1, 2)
    batch, num_heads, num_tokens, width = query.shape
    groups = num_heads // key.shape[1]
    heads = (query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))
    inputs = [x.transpose(1, 2).reshape(batch * num_tokens, -1) for x in heads]
    parts = documents if isinstance(documents, tuple) else (documents,)
    flat = reduce(torch.add, [_attend_rows(part, inputs, width, scaling) for part in parts])
    return flat.view(batch, num_tokens, num_heads, width)


def _attend_rows(rows: DocumentRows, inputs: list[torch.Tensor], width: int, scaling: float) -> torch.Tensor:
    """query, key, value (B * T, H * C) -> (B * T, H * C), zero where none of these documents is."""
    q, k, v = (rows.spread(x).unflatten(-1, (-1, width)).transpose(1, 2) for x in inputs)
    if rows.longest <= _PLAIN_MAX_TOKENS:
        out = _PlainAttention.apply(q, k, v, scaling)
    else:
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
    return rows.collect(out.transpose(1, 2).flatten(2), len(inputs[0]))


AttentionInterface.register(NAME, attend_documents)
