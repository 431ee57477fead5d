"""A network over many items on its device: as many at a time as memory takes, copied while it works, compiled by shape.

What a pass holds was counted, in units of one layer at full resolution (base_channels x pixels numbers): 4.0 of them to
encode with Emu3, 4.3 with Chameleon and Janus, 10.2 to decode, at any size (tests/tokenizer/vision/test_batching.py).
"""

import logging
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

ENCODE_LAYERS = 4.4  # full-resolution layers held at once
DECODE_LAYERS = 10.3
_MEMORY_SHARE = 0.4  # of what is free: two workers may share a GPU, and convolutions take work space
_MOST_PX = 1 << 23  # 32 pictures of 512 x 512, as many rows as a worker is given at once
_PLANNED_NUMBERS = 1 << 30  # of one layer: 32 bits index them, with room
_MOST_NUMBERS = (1 << 31) - 1  # beyond, some kernels of a GPU write zeros without a word (pytorch issue 141831)
COMPILE_AFTER = 32  # passes of one shape: a minute of compilation must not be paid for a handful of pictures
_MOST_COMPILED = 64

Call = Callable[[Tensor], Tensor]

log = logging.getLogger(__name__)


def px_that_fit(free_bytes: int, base_channels: int, itemsize: int, layers: float) -> int:
    """Pixels of one pass that take 0.4 of `free_bytes`; at least 1, at most 2^23."""
    return max(1, min(_MOST_PX, int(_MEMORY_SHARE * free_bytes / (layers * base_channels * itemsize))))


class CompiledOften:
    """A call, compiled by torch.compile for shapes that come often, and as it stands for all others.

    A shape is compiled when it comes for the 33rd time, 64 shapes at most. `mode` is torch.compile's: `default`,
    `reduce-overhead` (CUDA graphs) or `max-autotune`.
    """

    def __init__(self, call: Call, mode: str) -> None:
        self._call = call
        # By default a ninth shape of one function would silently run as it stands; here the bound is the class's own.
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, limits.accumulated_recompile_limit)
        self._compiled: Call = torch.compile(call, mode=mode, dynamic=False)
        self._passes: Counter[torch.Size] = Counter()
        self._often: set[torch.Size] = set()

    def __call__(self, items: Tensor) -> Tensor:
        """What the call makes of `items`."""
        shape = items.shape
        self._passes[shape] += 1
        if self._passes[shape] > COMPILE_AFTER and len(self._often) < _MOST_COMPILED:
            self._often.add(shape)
        if shape not in self._often:
            return self._call(items)
        torch.compiler.cudagraph_mark_step_begin()
        return self._compiled(items).clone()  # the next replay of a CUDA graph writes to the same place


class Passes:
    """A call (tensor of N items on the device -> tensor of N results) for NumPy arrays of any number of items.

    One pass holds at most `max_px` pixels and at least one item; when that does not fit, passes go on at half the size.
    Copies to a GPU and its kernels run while the next pass is prepared; the results come back together. `widest`:
    channels of the widest layer at full resolution.
    """

    def __init__(
        self, call: Call, device: torch.device, max_px: int, widest: int = 1, compile_mode: str | None = None
    ) -> None:
        self._call = call if compile_mode is None else CompiledOften(call, compile_mode)
        self._device = device
        self._widest = widest
        self.max_px = max(1, min(max_px, _PLANNED_NUMBERS // widest))

    def __call__(self, items: np.ndarray, px_each: int) -> np.ndarray:
        """Results of all items, of which there is at least one.

        Raises torch.OutOfMemoryError when one is too many, and ValueError when no GPU could index its layers.
        """
        if self._device.type != "cpu" and px_each * self._widest > _MOST_NUMBERS:
            raise ValueError(
                f"one picture or group of frames of {px_each} px has layers of {px_each * self._widest} numbers, more "
                "than the 2^31 - 1 that kernels of a GPU index; lower tokenize.frames.area_px, or use a CPU"
            )
        done: list[Tensor] = []
        start = 0
        while start < len(items):
            count = max(1, self.max_px // px_each)
            part = items[start : start + count]
            made = self._made(part)
            if made is not None:
                done.append(made)
                start += len(part)
                continue
            self.max_px = len(part) // 2 * px_each
            log.warning("%d px at once do not fit into GPU memory; going on with %d", len(part) * px_each, self.max_px)
            torch.cuda.empty_cache()
        return torch.cat(done).cpu().numpy()

    def _made(self, part: np.ndarray) -> Tensor | None:
        """None when memory does not hold all of it at once; what it held is free again when this has returned."""
        try:
            return self._call(self._copied(part))
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
            return None

    def _copied(self, items: np.ndarray) -> Tensor:
        if self._device.type != "cuda":
            return torch.tensor(items, device=self._device)
        pinned = torch.empty(items.shape, dtype=torch.from_numpy(items[:0].copy()).dtype, pin_memory=True)
        pinned.numpy()[...] = items
        return pinned.to(self._device, non_blocking=True)
