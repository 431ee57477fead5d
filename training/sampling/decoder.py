"""The layers of an Emu3ForCausalLM, for one token after the other: packed weights, a cache of fixed size.

On a CPU transformers' own forward pass of a small model is mostly Python and small products. Here queries, keys and
values are one product, gate and up another, the sum with the residual is part of the product before it, heads that
share keys are rows of one query. Nothing waits for the device: where a
sequence stands is a tensor, so that a GPU replays each step as one graph (torch.compile, "reduce-overhead").

Equal to transformers within 1e-4 in float32 (tests/training/sampling/test_decoder.py).

Shapes: R sequences, K new tokens of each, N = R * K, C columns of the cache, S of them looked at, D model, E of a head,
G heads of keys and of values, P heads of queries for each. Weights are (out, in).
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Emu3ForCausalLM

_HIDDEN = -1e9  # a finite score: padding, which sees nothing, stays a number
_MASK_NUMBERS = 1 << 24  # of one mask: long prefixes go through in parts
_COLUMNS = {False: 16, True: 256}  # a cache has a multiple of it; compiled, so that few lengths are shapes of their own
_ORDERED_BYTES = 1 << 24  # of a weight that is kept in a second order
_WORTH = 1 << 19  # multiplications from which oneDNN is quicker than MKL
_VARIANTS = 64  # shapes of a step that are compiled


class Product:
    """x -> x W^T + b. On a CPU small weights in float32 stand in oneDNN's order, too: on an AMD EPYC products of 8 to
    64 rows then take half the time of MKL's, which PyTorch takes by itself.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.weight = _fixed(weight)
        self.bias = None if bias is None else _fixed(bias)
        self._ordered: Tensor | None = None
        self._few_rows = -(-_WORTH // weight.numel())
        is_small = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.nbytes <= _ORDERED_BYTES
        if is_small and torch.backends.mkldnn.is_available():
            self._ordered = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def __call__(self, x_NI: Tensor) -> Tensor:
        if self._ordered is not None and x_NI.shape[0] >= self._few_rows:
            return torch.ops.mkldnn._linear_pointwise(x_NI, self._ordered, self.bias, "none", [], "")
        return functional.linear(x_NI, self.weight, self.bias)

    def onto(self, x_NO: Tensor, x_NI: Tensor) -> Tensor:
        """The residual `x_NO` and the product of `x_NI`."""
        if self._ordered is not None and x_NI.shape[0] >= self._few_rows:
            return torch.ops.mkldnn._linear_pointwise.binary(x_NI, x_NO, self._ordered, self.bias, "add")
        out = torch.addmm(x_NO, x_NI, self.weight.T)
        return out if self.bias is None else out + self.bias


def _fixed(tensor: Tensor) -> Tensor:
    """For compiled steps: it stays where it is, so a graph reads it there instead of a copy."""
    tensor = tensor.detach()
    torch._dynamo.mark_static_address(tensor, guard=False)
    return tensor


def _packed(*linears: nn.Linear) -> Product:
    """Layers with one input as one; their own weights become views of its, so that all is held once."""
    weight = _joined([linear.weight for linear in linears])
    return Product(weight, None if linears[0].bias is None else _joined([linear.bias for linear in linears]))


def _joined(parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    whole = torch.cat([part.detach() for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view
    return whole


class _Norm:
    def __init__(self, norm: Any):
        self._weight, self._eps = _fixed(norm.weight), float(norm.variance_epsilon)
        self._eps_1 = torch.tensor(self._eps)

    def __call__(self, x_ND: Tensor) -> Tensor:
        if not x_ND.is_cuda and x_ND.dtype == torch.float32:  # PyTorch has a kernel of its own for GPUs alone
            length_N1 = torch.linalg.vector_norm(x_ND, dim=-1, keepdim=True)
            mean_N1 = torch.addcmul(self._eps_1, length_N1, length_N1, value=1 / x_ND.shape[-1])
            return x_ND * mean_N1.rsqrt_() * self._weight
        return functional.rms_norm(x_ND, self._weight.shape, self._weight, self._eps)


class Cache(NamedTuple):
    """Of one layer: keys (R, G, E, C) and values (R, G, C, E), or both in `values`, keys first: (R, 2 G, C, E)."""

    keys: Tensor | None
    values: Tensor


class New(NamedTuple):
    """New tokens: `ids` (R, K), the columns (K,) where they stand in `caches`, one a layer, and `turns`, the rows of
    `Decoder.rope` for their positions. `pad_mask`: _HIDDEN where a sequence has not begun, (R, 1, 1, C). `span`:
    columns looked at.
    """

    ids: Tensor
    columns: Tensor
    turns: Tensor
    pad_mask: Tensor
    span: int
    caches: list[Cache]


class _Step(NamedTuple):
    """Where the new tokens stand: their columns (K,), the columns looked at, cosines and signed sines of their
    positions (R, K, 1, E), and what is added to their scores, broadcast to (R, G, P * K, S).
    """

    columns: Tensor
    span: int
    cos: Tensor
    sin: Tensor
    mask: Tensor


class _Layer:
    def __init__(self, layer: Any, num_groups: int, num_shared: int):
        attention, mlp = layer.self_attn, layer.mlp
        self._norm_1, self._norm_2 = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self._qkv = _packed(attention.q_proj, attention.k_proj, attention.v_proj)
        self._out = _packed(attention.o_proj)
        self._gate_up = _packed(mlp.gate_proj, mlp.up_proj)
        self._down = _packed(mlp.down_proj)
        self._width, self._scale = int(attention.head_dim), float(attention.scaling)
        self._groups, self._shared, self._act = num_groups, num_shared, mlp.act_fn

    def __call__(self, x_ND: Tensor, step: _Step, cache: Cache, is_last: bool) -> Tensor:
        """Of the last layer only the last of the new tokens comes out, (R, D)."""
        num_new, groups, shared, width = step.columns.shape[0], self._groups, self._shared, self._width
        num_queries = groups * shared
        heads = self._qkv(self._norm_1(x_ND)).view(-1, num_new, num_queries + 2 * groups, width)
        turned = heads[:, :, : num_queries + groups]
        rolled = turned.roll(width // 2, -1)
        turned.mul_(step.cos).addcmul_(rolled, step.sin)
        queries = heads[:, :, :num_queries]
        if num_new == 1:
            queries = queries.reshape(-1, groups, shared, width)
        else:
            queries = queries.unflatten(2, (groups, shared)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        seen = self._attend(queries, heads[:, :, num_queries:], step, cache)
        if num_new > 1:
            seen = seen.unflatten(2, (shared, num_new)).permute(0, 3, 1, 2, 4)
            if is_last:
                x_ND, seen = x_ND[num_new - 1 :: num_new], seen[:, -1]
        x_ND = self._out.onto(x_ND, seen.reshape(x_ND.shape[0], num_queries * width))
        gate, up = self._gate_up(self._norm_2(x_ND)).chunk(2, -1)
        return self._down.onto(x_ND, self._act(gate).mul_(up))

    def _attend(self, queries: Tensor, new: Tensor, step: _Step, cache: Cache) -> Tensor:
        """Write new keys and values (R, K, 2 G, E), and look at all: queries and results are (R, G, P * K, E)."""
        groups, span = self._groups, step.span
        if cache.keys is None:
            both = cache.values.index_copy_(2, step.columns, new.transpose(1, 2))
            keys, values = both[:, :groups, :span], both[:, groups:, :span]
            return functional.scaled_dot_product_attention(queries, keys, values, step.mask, scale=self._scale)
        cache.keys.index_copy_(3, step.columns, new[:, :, :groups].permute(0, 2, 3, 1))
        cache.values.index_copy_(2, step.columns, new[:, :, groups:].transpose(1, 2))
        scores = torch.add(step.mask, torch.matmul(queries, cache.keys[..., :span]), alpha=self._scale)
        return torch.matmul(torch.softmax(scores, dim=-1), cache.values[:, :, :span])


class Decoder:
    """A model's layers without its head. `is_compiled`: each shape of a step as a graph, for GPUs. `is_plain`:
    attention as two products, with keys column by column, which is quicker on a CPU for single queries (null: there).

    The model stays usable: its weights become views of the packed ones.
    """

    def __init__(self, lm: Emu3ForCausalLM, is_compiled: bool = False, is_plain: bool | None = None):
        config: Any = lm.config
        model: Any = lm.model
        self.num_groups = int(config.num_key_value_heads)
        self.width = int(model.layers[0].self_attn.head_dim)
        self.embedding = _fixed(model.embed_tokens.weight)
        self._shared = int(config.num_attention_heads) // self.num_groups
        self.layers = [_Layer(layer, self.num_groups, self._shared) for layer in model.layers]
        self._norm = _Norm(model.norm)
        self._rotary = model.rotary_emb
        self._step = self._run
        if is_compiled:
            self._step = torch.compile(self._run, mode="reduce-overhead", dynamic=False, fullgraph=True)
        self.is_compiled = is_compiled
        self._last: tuple[tuple[int, int], list[Cache]] | None = None
        on_cpu = self.device.type == "cpu"
        self._is_plain = on_cpu and not is_compiled if is_plain is None else is_plain

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def column_bytes(self) -> int:
        """What a token of one sequence takes in the cache."""
        return 2 * len(self.layers) * self.num_groups * self.width * self.embedding.element_size()

    def num_columns(self, num_tokens: int) -> int:
        """Of a cache with room for so many tokens."""
        step = _COLUMNS[self.is_compiled]
        return -(-num_tokens // step) * step

    def caches(self, num_rows: int, num_columns: int) -> list[Cache]:
        """One for each layer; zeros, for what is hidden must be a number. Compiled steps get the last ones again, where
        their graphs look for them.
        """
        shape = (num_rows, num_columns)
        if not self.is_compiled:
            return self._new_caches(*shape)
        if self._last is None or self._last[0] != shape:
            self._last = None  # its memory first
            self._last = shape, self._new_caches(*shape)
        return self._last[1]

    def _new_caches(self, num_rows: int, num_columns: int) -> list[Cache]:
        groups, width = self.num_groups, self.width

        def made(*shape: int) -> Tensor:
            return _fixed(self.embedding.new_zeros(num_rows, *shape))

        if self._is_plain:
            shapes = (groups, width, num_columns), (groups, num_columns, width)
            return [Cache(*(made(*shape) for shape in shapes)) for _ in self.layers]
        return [Cache(None, made(2 * groups, num_columns, width)) for _ in self.layers]

    def mask_rows(self, num_new: int) -> int:
        """Rows of a mask, for each sequence."""
        return self._shared * num_new

    def rope(self, num_positions: int) -> Tensor:
        """Cosines, and sines with the sign of their half, by position: (positions, 2, 1, E)."""
        cos, sin = self._rotary(self.embedding, torch.arange(num_positions, device=self.device)[None])
        half = self.width // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        return torch.stack([cos[0], sin[0]], dim=1)[:, :, None]

    def prefill(self, new: New) -> Tensor:
        """As `step`, for many new tokens at once; never compiled."""
        return self._run(new)

    def step(self, new: New) -> Tensor:
        """The last hidden state of each sequence, (R, D), normed for the head; the caches hold the new tokens then.

        A compiled step's result is overwritten by the next one.
        """
        if not self.is_compiled:
            return self._run(new)
        torch.compiler.cudagraph_mark_step_begin()
        with torch._dynamo.config.patch(recompile_limit=_VARIANTS):
            return self._step(new)

    def _run(self, new: New) -> Tensor:
        num_rows, num_new = new.ids.shape
        mask = new.pad_mask[..., : new.span]
        if num_new > 1 or self.is_compiled:  # else no column looked at is to come
            future = torch.arange(new.span, device=new.ids.device) > new.columns[:, None]
            mask = (mask + future * _HIDDEN).to(mask.dtype).repeat(1, 1, self._shared, 1)
        step = _Step(new.columns, new.span, new.turns[:, :, 0], new.turns[:, :, 1], mask)
        x_ND = functional.embedding(new.ids, self.embedding).view(num_rows * num_new, -1)
        last = self.layers[-1]
        for layer, cache in zip(self.layers, new.caches, strict=True):
            x_ND = layer(x_ND, step, cache, layer is last)
        return self._norm(x_ND)


class Stream:
    """Sequences of different lengths that grow together: padded on the left, positions counted from their own start."""

    def __init__(self, decoder: Decoder, prefixes: list[np.ndarray], num_more: int, pad: int):
        """`num_more`: how many ids are fed at most."""
        longest = max(map(len, prefixes))
        ids = np.full((len(prefixes), longest), pad, np.int64)
        for row, prefix in zip(ids, prefixes, strict=True):
            row[longest - len(prefix) :] = prefix
        self._decoder, device = decoder, decoder.device
        self._ids = torch.from_numpy(ids).to(device)
        pads_R1 = torch.tensor([[longest - len(prefix)] for prefix in prefixes], device=device)
        num_columns = decoder.num_columns(longest + num_more)
        self._columns = torch.arange(num_columns, device=device)
        self._positions = (self._columns - pads_R1).clamp_(min=0)
        self._rope = decoder.rope(num_columns)
        self._caches = decoder.caches(len(prefixes), num_columns)
        is_pad = (self._columns < pads_R1)[:, None, None]
        self._pad_mask = decoder.embedding.new_zeros(is_pad.shape).masked_fill_(is_pad, _HIDDEN)
        self._used = 0

    def prefill(self) -> Tensor:
        """The last hidden state of every prefix, (R, D)."""
        num_rows, longest = self._ids.shape
        part = max(1, _MASK_NUMBERS // (num_rows * self._decoder.mask_rows(1) * longest))
        for ids_RK in self._ids.split(part, dim=1):
            hidden = self._decoder.prefill(self._new(ids_RK, self._used + ids_RK.shape[1]))
        return hidden

    def feed(self, ids_RK: Tensor) -> Tensor:
        """Append K ids to every sequence; the last hidden state, (R, D), which the next call may overwrite."""
        span, num_columns = self._used + ids_RK.shape[1], len(self._columns)
        if self._decoder.is_compiled:  # two shapes, not one for every length
            span = num_columns // 2 if span <= num_columns // 2 else num_columns
        return self._decoder.step(self._new(ids_RK, span))

    def _new(self, ids_RK: Tensor, span: int) -> New:
        new = slice(self._used, self._used + ids_RK.shape[1])
        self._used = new.stop
        turns_RK = self._rope[self._positions[:, new]]
        return New(ids_RK, self._columns[new], turns_RK, self._pad_mask, span, self._caches)
