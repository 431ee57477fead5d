"""The weights of a folder against its config, before memory is taken: one with a damaged digit asks for any amount."""

import json
import math
from pathlib import Path
from typing import Any

_LENGTH_BYTES = 8  # of the header of a .safetensors file
_MAX_HEADER_BYTES = 100_000_000  # as the format has it
_MOST_TIMES = 4
_REPEATED = ("num_hidden_layers", "num_res_blocks")  # each one has tensors of its own


def check_sizes(folder: Path, model_class: Any, config: Any) -> None:
    """Raises ValueError where a model of that config has far more weights than the .safetensors files of `folder` hold;
    where it has a few more, loading them tells which.
    """
    import torch

    shapes = [shape for file in sorted(folder.glob("*.safetensors")) for shape in _shapes(file)]
    if not shapes:
        return  # another format, which its library reads
    for name, value in config.to_dict().items():
        number = len(value) if isinstance(value, list) else value if name in _REPEATED else 0
        if number > len(shapes):
            raise ValueError(f"config.json: {name} asks for more than the {len(shapes)} tensors that there are")
    try:
        with torch.device("meta"):
            wanted = sum(weight.numel() for weight in model_class(config).parameters())
    except Exception as error:  # of sizes that fit nothing libraries raise whatever comes
        raise ValueError(f"config.json: {type(error).__name__}: {error}") from error
    if wanted > _MOST_TIMES * (held := sum(math.prod(shape) for shape in shapes)):
        raise ValueError(f"config.json asks for {wanted} weights, the files hold {held}")


def _shapes(file: Path) -> list[list[int]]:
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if size > _MAX_HEADER_BYTES:
            raise ValueError(f"{file.name}: its header has {size} bytes")
        header = json.loads(stream.read(size))
    return [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
