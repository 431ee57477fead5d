"""What a step computes, and which share of the device's peak that is: model FLOPs utilization, MFU (PaLM, appendix B).

A token costs 6 operations for each weight that it is multiplied with, forward and backward, 4 for one that does not
learn: all matrices but the table of embeddings. A pair of tokens that see each other costs 12 for each channel of each
layer; documents are causal and blind to one another, so one of n tokens has n (n + 1) / 2 pairs. What is recomputed to
save memory does not count.
"""

import math

import torch
from transformers import Emu3ForCausalLM

# Dense bfloat16 operations a second as the makers' data sheets say, without sparsity, by a part of the device's name;
# the first that fits counts.
_PEAKS = {
    "H200 NVL": 835e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


class Flops:
    """Of a model."""

    def __init__(self, lm: Emu3ForCausalLM):
        config = lm.config
        embedded = {id(lm.model.embed_tokens.weight)} - {id(lm.lm_head.weight)}  # tied: one matrix, multiplied once
        multiplied = [each for each in lm.parameters() if each.dim() == 2 and id(each) not in embedded]
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.per_token = sum((6.0 if each.requires_grad else 4.0) * each.numel() for each in multiplied)
        self.per_pair = 12.0 * config.num_hidden_layers * config.num_attention_heads * width

    def of(self, num_tokens: float, num_pairs: float) -> float:
        """Forward and backward."""
        return self.per_token * num_tokens + self.per_pair * num_pairs


def peak_per_s(device: torch.device, dtype: str) -> float:
    """Operations a second that the device could do in that dtype; not a number where nobody has said."""
    if device.type != "cuda" or dtype != "bfloat16":
        return math.nan
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float:
    """The same by the name of a GPU."""
    return next((peak for part, peak in _PEAKS.items() if part in name), math.nan)
