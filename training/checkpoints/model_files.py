"""The weights of a trained model -> files that transformers loads; no worker holds more than one of them."""

import tempfile
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import PreTrainedModel

from tokenmill import storage
from tokenmill.storage import scratch
from tokenmill.storage.checksums import checksum
from tokenmill.training.lora import adapter_weights, plain_weights, put_together

FILE_BYTES = 2 << 30  # in memory and in scratch space of the first worker
_INDEX = "model.safetensors.index.json"


def write_weights(lm: PreTrainedModel, uri: str, rank: int, file_bytes: int = FILE_BYTES) -> dict[str, object]:
    """Write `model.safetensors`, or several files and their index, under `uri`, with what LoRA learned added. Every
    worker must call it; the first writes. Returns checksums by name of file, of the others none.
    """
    tied = set(lm.all_tied_weights_keys)  # the same tensor as another
    weights = {name: parts for name, parts in plain_weights(lm).items() if name not in tied}
    sizes = {name: torch.empty_like(parts[0], device="meta") for name, parts in weights.items()}
    split = split_torch_state_dict_into_shards(sizes, max_shard_size=file_bytes)
    known: dict[str, object] = {}
    for file, names in split.filename_to_tensors.items():
        part = {}
        for name in names:
            whole = put_together(weights[name])
            if rank == 0:
                part[name] = whole.cpu().contiguous()
        if rank == 0:
            known[file] = _write(part, storage.join(uri, file))
    if rank == 0 and split.is_sharded:
        index = storage.join(uri, _INDEX)
        storage.write_json(index, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
        known[_INDEX] = checksum(index)
    return known


def write_adapter(lm: PreTrainedModel, uri: str, rank: int) -> None:
    """Write `adapter_model.safetensors` under `uri`: what LoRA learned alone, as `peft` reads it. Every worker must
    call it.
    """
    wholes = {name: put_together([tensor]) for name, tensor in adapter_weights(lm).items()}
    if rank == 0:
        part = {name: whole.cpu().contiguous() for name, whole in wholes.items()}
        _write(part, storage.join(uri, "adapter_model.safetensors"))


def _write(tensors: dict[str, torch.Tensor], uri: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="tokenmill-", dir=scratch.folder()) as folder:
        path = Path(folder) / "part.safetensors"
        save_file(tensors, path, metadata={"format": "pt"})
        storage.write_file(uri, str(path))
        return checksum(str(path))
