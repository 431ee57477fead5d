"""Tokenize frames: pixels -> codes of the vision tokenizer, in batches of exactly one size.

Media of one size (frames x height x width) are encoded together, so that batches are full and nothing is padded:
padding changes the codes of the valid area, down to 39 % agreement (GroupNorm and global attention see it). Codes are
local to the modality: 0..codebook_size - 1, row-major over (grid_t, grid_h, grid_w).
"""

import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from tokenmill.stages.table.columns import PLACES
from tokenmill.stages.table.rows import pick, replace, values_of
from tokenmill.stages.tokenize.load_frames import LoadFrames
from tokenmill.storage.identity import Config
from tokenmill.tokenizer.shards import TOKENS

_STACKED_PX = 1 << 25  # of media of one size in one array: 100 MB, and several passes of a GPU that do not wait


class TokenizeConfig(Config):
    """Which vision tokenizer, at which precision."""

    model: str = Field(
        default="builtin",
        min_length=1,
        description="wrong model: codes that the language model never saw; a hub name, a local path, or `builtin`",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="too small: codes next to a border flip; too large: half the speed; auto: bfloat16 where the "
        "device multiplies in it, else float32, and rows of another dtype stay as they are",
    )


class Tokenize:
    """`frames` -> `codes` (list<uint16>) with grid_t, grid_h, grid_w. The frames are dropped. A text has no codes.

    Costs 3.7 TFLOP per 512 x 512 image with Emu3's tokenizer, four times that per group of 4 frames. Rejects nothing:
    what has no frames has a reason already. `batch_px` (frames x height x width of one pass of a GPU; null: what its
    free memory takes) changes no code. `compile_mode` is torch.compile's, for sizes that come often.
    """

    reads = pa.schema([*pick(TOKENS, "kind"), *pick(LoadFrames.writes, "frames", "frames_t", "frames_h", "frames_w")])
    writes = pick(TOKENS, "codes", "grid_t", "grid_h", "grid_w")
    drops = (
        *(name for name in PLACES.names if name not in TOKENS.names),
        *("frames", "frames_t", "frames_h", "frames_w", "reject_detail"),
    )
    rows = "same"

    def __init__(self, config: TokenizeConfig, batch_px: int | None = None, compile_mode: str | None = None):
        from tokenmill.tokenizer.vision.vision_tokenizer import (
            VisionTokenizer,  # torch and transformers: seconds that only this worker need spend
        )

        self._tokenizer = VisionTokenizer.load(config.model, device_of_worker(), config.dtype, batch_px, compile_mode)
        assert self._tokenizer.codebook_size <= 1 << 16  # codes are stored in 16 bits

    def __call__(self, table: pa.Table) -> pa.Table:
        values = values_of(table, self.writes)
        for i, kind in enumerate(table["kind"].to_pylist()):
            if kind == "text":  # a row without codes: training reads its caption
                values["codes"][i] = []
                values["grid_t"][i] = values["grid_h"][i] = values["grid_w"][i] = 0
        shapes = zip(*(table[name].to_pylist() for name in ("kind", "frames_t", "frames_h", "frames_w")), strict=True)
        rows_of: dict[tuple, list[int]] = defaultdict(list)
        for i, shape in enumerate(shapes):
            if table["frames"][i].is_valid:
                rows_of[shape].append(i)
        for shape, rows in rows_of.items():
            for part in _parts(rows, shape):
                for i, codes in zip(part, self._encode(table["frames"], part, shape), strict=True):
                    values["codes"][i] = codes.astype(np.uint16).reshape(-1)
                    values["grid_t"][i], values["grid_h"][i], values["grid_w"][i] = codes.shape
        result = replace(table, self.writes, values, self.drops)
        order = [name for name in TOKENS.names if name in result.column_names]
        return result.select(order + [name for name in result.column_names if name not in order])

    def _encode(self, frames: pa.ChunkedArray, rows: list[int], shape: tuple) -> np.ndarray:
        """Codes (B, grid_t, grid_h, grid_w) of the rows, which all have this (kind, T, H, W)."""
        kind, *size = shape
        pixels = np.stack([np.frombuffer(frames[i].as_buffer(), np.uint8).reshape(*size, 3) for i in rows])
        if kind == "image":
            return self._tokenizer.encode_images(pixels[:, 0])[:, None]
        return self._tokenizer.encode_clips(pixels)


def _parts(rows: list[int], shape: tuple) -> Iterator[list[int]]:
    count = max(1, _STACKED_PX // int(np.prod(shape[1:])))
    for start in range(0, len(rows), count):
        yield rows[start : start + count]


def device_of_worker() -> str:
    """`cuda` when there is a GPU and, inside a Ray worker, the worker was given one; else `cpu`."""
    import torch

    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"
