"""A small model's tensors and config in the layout that BAAI published, apart from the code that reads that layout."""

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

_BACKWARDS = [
    (".down_block.down.", ".down."),
    (".up_block.up.", ".up."),
    (".middle_block.", ".mid."),
    (".attn_norm.", ".attn_1.norm."),
    (".attn_norms.0.", ".attn.0.norm."),
    (".attn_norms.1.", ".attn.1.norm."),
    (".out_proj.", ".proj_out."),
    (".q_proj.", ".q."),
    (".k_proj.", ".k."),
    (".v_proj.", ".v."),
]
_CONFIG = {"ch": 32, "ch_mult": [1, 1, 2, 2], "num_res_blocks": 1, "codebook_size": 64, "z_channels": 4}


def published_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors by their published names, attention as 1x1 convolutions."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        is_attention = tensor.ndim == 2 and ".attn" in name
        for ours, theirs in _BACKWARDS:
            name = name.replace(ours, theirs)
        tensors[name] = (tensor[:, :, None, None] if is_attention else tensor).contiguous()
    return tensors


def save_published(tensors: dict[str, Tensor], folder: Path) -> None:
    """`tensors` and the config of the small model that both tests use."""
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "Emu3VisionVQ", **_CONFIG}))
