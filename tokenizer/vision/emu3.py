"""Emu3's networks (`transformers`' Emu3VQVAE): pixels -> vectors and back, at a quarter of the work on stills.

The reference repeats a still 4 times and runs all copies through the 2-D trunk. Here the trunk sees it once and its
4-channel latent is expanded before the temporal convolutions; decoding keeps one frame before the trunk. Both give the
reference's codes, and its pixels to the rounding (the trunk never looks across frames), at 0.25 of its FLOPs. Clips are
coded in independent groups of 4 frames, the authors' convention (Emu3 code, autoencode.py), so any group can be read
alone.

Shapes: N pictures or groups, T frames, t groups, H W pixels, h w codes, C channels, D dimensions of a code.
"""

import torch
from torch import Tensor
from transformers import Emu3VQVAE

# Of a channel of a frame. Larger frames a CPU decodes one at a time, in 0.55 to 0.75 of the time.
_GROUP_BYTES = 1 << 15
_FLASH_DIMS = 256  # of a head, at most
_PRODUCT_PLACES = 48  # for each base channel: the matrix takes no more memory than layers of full resolution do


def encode_trunk(model: Emu3VQVAE, pixels_NCHW: Tensor) -> Tensor:
    """The 2-D half of the encoder, frame by frame: pixels in -1..1 -> latent (N, C, h, w)."""
    encoder = model.encoder
    x = encoder.conv_in(pixels_NCHW)
    x = encoder.middle_block(encoder.down_block(x))
    x = encoder.norm_out(x)
    return encoder.conv_out(x * torch.sigmoid(x))


def encode_time(model: Emu3VQVAE, latent_BCTHW: Tensor) -> Tensor:
    """The temporal half of the encoder: 4 frames of latents -> one vector a place (B, D, t, h, w), not yet a code."""
    x = latent_BCTHW
    for conv in model.encoder.time_conv:
        x = conv(x)
        x = x * torch.sigmoid(x)
    for layer in model.encoder.time_res_stack:
        x = layer(x)
    return model.quant_conv(x)


def decode_time(model: Emu3VQVAE, quant_BDTHW: Tensor) -> tuple[Tensor, Tensor]:
    """The temporal half of the decoder: code vectors -> (hidden, guide), each (B, D, 4t, h, w)."""
    x = torch.cat((model.post_quant_conv(quant_BDTHW), quant_BDTHW))
    for layer in model.decoder.time_res_stack:
        x = layer(x)
    for conv in model.decoder.time_conv:
        x = conv(x)
        x = x * torch.sigmoid(x)
    hidden, guide = x.chunk(2)
    return hidden, guide


def decode_trunk(model: Emu3VQVAE, hidden_NDHW: Tensor, guide_NDHW: Tensor) -> Tensor:
    """The 2-D half of the decoder, frame by frame -> pixels in about -1..1, (N, 3, H, W)."""
    decoder = model.decoder
    x = decoder.conv_in(hidden_NDHW)
    x = decoder.up_block(decoder.middle_block(x, guide_NDHW), guide_NDHW)
    x = decoder.norm_out(x, guide_NDHW)
    return decoder.conv_out(x * torch.sigmoid(x))


class Emu3Codec:
    """Emu3VQVAE as VisionTokenizer calls it."""

    clips = True
    decodes = True

    def __init__(self, model: Emu3VQVAE) -> None:
        self._model = model
        self.spatial_factor = 2 ** (len(model.config.channel_multiplier) - 1)
        self.temporal_factor = int(model.config.temporal_downsample_factor)

    def attend_in_half_precision(self, num_places: int) -> None:
        """Choose how `num_places` codes attend to each other on a GPU: by plain products or by torch's fused attention.

        The published head has 1,024 dimensions. No flash kernel takes them; the fused one that does reads and writes
        its sums again for every block of keys. Two products and a softmax move less, while their matrix is small.
        """
        config = self._model.config
        is_wide = config.hidden_size // config.num_attention_heads > _FLASH_DIMS
        is_small = num_places <= _PRODUCT_PLACES * config.base_channels
        self._model.set_attn_implementation("eager" if is_wide and is_small else "sdpa")

    def encode_images(self, pixels_NCHW: Tensor) -> Tensor:
        """Pixels in -1..1 -> vectors (N, D, 1, h, w), not yet codes."""
        latent = encode_trunk(self._model, pixels_NCHW)
        return encode_time(self._model, latent.unsqueeze(2).expand(-1, -1, self.temporal_factor, -1, -1))

    def encode_groups(self, pixels_NTCHW: Tensor) -> Tensor:
        """Groups of 4 frames in -1..1 -> vectors (N, D, 1, h, w), not yet codes."""
        latent = encode_trunk(self._model, pixels_NTCHW.flatten(0, 1)).unflatten(0, pixels_NTCHW.shape[:2])
        return encode_time(self._model, latent.transpose(1, 2))

    def decode_images(self, vectors_NDTHW: Tensor) -> Tensor:
        """Code vectors (N, D, 1, h, w) -> pixels in about -1..1, (N, 3, H, W)."""
        hidden, guide = decode_time(self._model, vectors_NDTHW)
        return decode_trunk(self._model, hidden[:, :, 0].contiguous(), guide[:, :, 0].contiguous())

    def decode_groups(self, vectors_NDTHW: Tensor) -> Tensor:
        """Code vectors (N, D, 1, h, w) -> pixels of all frames in about -1..1, (4N, 3, H, W)."""
        hidden, guide = (half.transpose(1, 2).flatten(0, 1) for half in decode_time(self._model, vectors_NDTHW))
        frame_bytes = hidden[0, 0].numel() * self.spatial_factor**2 * hidden.itemsize
        if hidden.device.type != "cpu" or frame_bytes <= _GROUP_BYTES:
            return decode_trunk(self._model, hidden, guide)
        pairs = zip(hidden.split(1), guide.split(1), strict=True)
        return torch.cat([decode_trunk(self._model, *pair) for pair in pairs])
