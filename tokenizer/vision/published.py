"""BAAI's published weights (hub: BAAI/Emu3-VisionTokenizer) -> transformers' Emu3VQVAE, tensor by tensor.

The layout differs in names only, except that attention is 1x1 convolutions there and linear layers here (EMU3 code,
modeling_emu3visionvq.py). Loading is strict: a name too many or too few is an error. None of their code is run.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from tokenmill.storage.tensors import check_sizes

MODEL_TYPE = "Emu3VisionVQ"

_CONFIG_NAMES = {
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "z_channels": "latent_channels",
    "double_z": "double_latent",
    "codebook_size": "codebook_size",
    "embed_dim": "embed_dim",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "temporal_downsample_factor": "temporal_downsample_factor",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
}
_TENSOR_NAMES = [
    (r"^encoder\.down\.", "encoder.down_block.down."),
    (r"^decoder\.up\.", "decoder.up_block.up."),
    (r"\.mid\.", ".middle_block."),
    (r"\.attn_1\.norm\.", ".attn_norm."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"\.(attn_1|attn\.\d+)\.(q|k|v)\.", r".\1.\2_proj."),
    (r"\.(attn_1|attn\.\d+)\.proj_out\.", r".\1.out_proj."),
]


def renamed(name: str) -> str:
    """A tensor's published name -> its name in Emu3VQVAE."""
    for pattern, replacement in _TENSOR_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def load_published(folder: Path) -> Emu3VQVAE:
    """The weights of a folder in BAAI's layout, fp32 on the CPU. Raises ValueError when names or shapes do not fit."""
    published = json.loads((folder / "config.json").read_text())
    values = {ours: published[theirs] for theirs, ours in _CONFIG_NAMES.items() if theirs in published}
    config = Emu3VQVAEConfig(**values)
    config.hidden_size = config.base_channels * config.channel_multiplier[-1]
    check_sizes(folder, Emu3VQVAE, config)
    model = Emu3VQVAE(config)
    wanted = model.state_dict()
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= {renamed(name): tensor.to(torch.float32) for name, tensor in load_file(file).items()}
    for name, tensor in weights.items():
        if name in wanted and tensor.ndim == 4 and wanted[name].ndim == 2:
            weights[name] = tensor[:, :, 0, 0]
        if not wanted.get(name, tensor).is_floating_point():
            weights[name] = weights[name].to(wanted[name].dtype)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{folder}: not the layout of BAAI/Emu3-VisionTokenizer: {error}") from error
    return model
