"""A VQ config -> an untrained Emu3VQVAE that learns from its first step.

As transformers initializes it, the class is made to be loaded, not trained: with its trunk, a batch used 7 codes after
300 steps (15.2 dB). Here every residual branch starts at zero, latents at unit scale, and time hands them through: 276
codes (21.4 dB).
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from transformers import Emu3VQVAE, Emu3VQVAEConfig
from transformers.models.emu3.modeling_emu3 import (
    Emu3VQVAEAttentionBlock,
    Emu3VQVAEResnetBlock,
    Emu3VQVAESpatialNorm,
    Emu3VQVAETemporalResnetBlock,
)

_OFFSET = 2.0  # swish is nearly the identity around +2, and flat around 0
_AFTER = _OFFSET / (1 + math.exp(-_OFFSET))
_DIFFERENCE = 0.5
_SWISH_POWER = 0.36  # mean square of swish of a unit normal


def start(config: Emu3VQVAEConfig) -> Emu3VQVAE:
    """A new model in eval mode, its weights drawn from torch's global generator; the codebook takes no gradient."""
    model = Emu3VQVAE(config)
    for module in model.modules():
        if isinstance(module, Emu3VQVAEResnetBlock):
            _zero(module.conv2)
        elif isinstance(module, Emu3VQVAETemporalResnetBlock):
            _zero(module.conv2.conv)
        elif isinstance(module, Emu3VQVAEAttentionBlock):
            _zero(module.out_proj)
        elif isinstance(module, Emu3VQVAESpatialNorm):
            _fill(module.conv_y.bias, 1.0)
            _fill(module.conv_b.bias, 0.0)
    for last, scale in ((model.encoder.conv_out, 1.0), (model.decoder.conv_out, 0.1)):
        nn.init.normal_(last.weight, std=scale / math.sqrt(_SWISH_POWER * last.weight[0].numel()))
        _fill(last.bias, 0.0)
    for layers, num_taps in ((model.encoder.time_conv, 2), (model.decoder.time_conv, 1)):
        convs = [module for module in layers.modules() if isinstance(module, nn.Conv3d)]
        for index, conv in enumerate(convs):
            _pass_through(conv, num_taps, bias=_OFFSET if index == 0 else _OFFSET - _AFTER)
    _pass_through(model.quant_conv.conv, 1, bias=-_AFTER)
    _pass_through(model.post_quant_conv.conv, 1, bias=0.0)
    model.quantize.embedding.requires_grad_(False)
    return model.eval()


@torch.no_grad()
def widened(model: Emu3VQVAE, wider: Emu3VQVAE) -> Emu3VQVAE:
    """`wider`, of `start` with more dimensions of latents and codes, or more codes, made to give what `model` gives.

    The first dimensions are those of `model`, and no weight leads from the new ones to them or to pixels yet. The new
    ones start as random differences between frames: nothing for what stands still.
    """
    given, num_dims = model.state_dict(), model.config.embed_dim
    for name, weight in wider.state_dict().items():
        old = given[name]
        if weight.shape != old.shape:
            if weight.ndim == 5:
                weight[: len(old)] = 0
            elif weight.ndim in (2, 4):
                weight.zero_()  # codes, and what turns pixels into latents and back
            weight[tuple(slice(size) for size in old.shape)] = old
        else:
            weight.copy_(old)
    convs = [module for module in wider.encoder.time_conv.modules() if isinstance(module, nn.Conv3d)]
    for index, conv in enumerate(convs):  # over four frames, or over two pairs of them behind two of padding
        weight = conv.weight[num_dims:, :, :, 1, 1]
        drawn = _DIFFERENCE * torch.randn(*weight.shape[:2], 2)
        weight[:, :num_dims] = (drawn.repeat_interleave(2, 2) * torch.tensor([-1.0, 1.0, -1.0, 1.0]))[:, :num_dims]
        if index:
            weight[:, num_dims:, -2:] = drawn[:, num_dims:]  # of what is the same wherever nothing moves
            assert conv.bias is not None
            _fill(conv.bias[num_dims:], _OFFSET - _AFTER * drawn[:, num_dims:].sum((1, 2)))
    return wider.eval()


def keep_stills(model: Emu3VQVAE, num_dims: int) -> None:
    """Leave the temporal layers of a widened model alone to be trained, and not its first `num_dims` latents."""
    model.requires_grad_(False)
    encoder, decoder = model.encoder, model.decoder
    for part in (encoder.time_conv, encoder.time_res_stack, model.quant_conv):
        for weight in part.parameters():
            weight.requires_grad_(True).register_hook(partial(_only_behind, num_dims))
    for part in (model.post_quant_conv, decoder.time_conv, decoder.time_res_stack):
        part.requires_grad_(True)


def _only_behind(num_dims: int, gradient: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(gradient[:num_dims]), gradient[num_dims:]])


@torch.no_grad()
def _pass_through(conv: nn.Conv3d, num_taps: int, bias: float) -> None:
    """Make a causal convolution the mean of its newest `num_taps` frames, channel by channel, plus `bias`."""
    nn.init.zeros_(conv.weight)
    row, column = conv.kernel_size[1] // 2, conv.kernel_size[2] // 2
    for channel in range(conv.out_channels):
        conv.weight[channel, channel, -num_taps:, row, column] = 1 / num_taps
    _fill(conv.bias, bias)


@torch.no_grad()
def _fill(bias: Tensor | None, value: float | Tensor) -> None:
    assert bias is not None
    bias[:] = value


def _zero(layer: nn.Conv2d | nn.Conv3d | nn.Linear) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
