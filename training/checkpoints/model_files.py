"""The weights of a trained model -> files that transformers loads; no worker holds more than one of them."""

import tempfile
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from tokenmill import storage
from tokenmill.storage import scratch
from tokenmill.storage.checksums import checksum

FILE_BYTES = 2 << 30  # in memory and in scratch space of the first worker
_INDEX = "model.safetensors.index.json"


def write_weights(lm: PreTrainedModel, uri: str, rank: int, file_bytes: int = FILE_BYTES) -> dict[str, object]:
    """Write `model.safetensors`, or several files and their index, under `uri`. Every worker must call it; the first
    writes. Returns checksums by name of file, of the others none.
    """
    tied = set(lm.all_tied_weights_keys)  # the same tensor as another
    weights = {name: tensor.detach() for name, tensor in lm.state_dict().items() if name not in tied}
    sizes = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in weights.items()}
    split = split_torch_state_dict_into_shards(sizes, max_shard_size=file_bytes)
    known: dict[str, object] = {}
    for file, names in split.filename_to_tensors.items():
        part = {}
        for name in names:
            tensor = weights[name]
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if rank == 0:
                part[name] = whole.cpu().contiguous()
        if rank == 0:
            known[file] = _write(part, storage.join(uri, file))
    if rank == 0 and split.is_sharded:
        index = storage.join(uri, _INDEX)
        storage.write_json(index, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
        known[_INDEX] = checksum(index)
    return known


def _write(tensors: dict[str, torch.Tensor], uri: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="tokenmill-", dir=scratch.folder()) as folder:
        path = Path(folder) / "part.safetensors"
        save_file(tensors, path, metadata={"format": "pt"})
        storage.write_file(uri, str(path))
        return checksum(str(path))
