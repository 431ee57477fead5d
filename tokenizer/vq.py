"""Pixels <-> codes: one interface over the vision tokenizers of `transformers`; exact, no whole matrix of distances.

| class | codes | networks |
| --- | --- | --- |
| Emu3VQVAE | images and clips | tokenizer/vq_emu3.py |
| JanusVQVAE | images | tokenizer/vq_still.py |
| ChameleonVQVAE | images, encoding only | tokenizer/vq_still.py |

Codes are those of the reference class, in fp32 on a CPU. It holds N x K distances, several copies of 1 GiB for one
720 x 720 image with Emu3's 32,768 codes; here the nearest code is searched in chunks that fit a cache.

Shapes: B batch, T frames, t groups, H W pixels, h w codes, D dimensions of a code, K codes, N vectors.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ChameleonVQVAE, Emu3VQVAE, JanusVQVAE
from transformers.utils import logging as transformers_logging

from tokenizer import vq_published
from tokenizer.identity import weights_id
from tokenizer.vq_emu3 import Emu3Codec
from tokenizer.vq_still import StillCodec
from tokenizer.vq_weights import CLIP_TOKENIZERS, TokenizerLoadError, config_of, folder_of

_DISTANCE_ELEMENTS = 1 << 23  # 32 MiB of fp32 distances at a time; all of a 720x720 image would be 1 GiB
_CACHED_ELEMENTS = 1 << 18  # 1 MiB stays in a core's cache: 0.08 s for 1,024 vectors and 32,768 codes instead of 0.31 s
_CLASSES: dict[str, Any] = {"emu3_vqgan": Emu3VQVAE, "chameleon_vqgan": ChameleonVQVAE, "janus_vqgan": JanusVQVAE}

Model = Emu3VQVAE | ChameleonVQVAE | JanusVQVAE


def load_model(folder: Path) -> Model:
    """The weights in `folder`, fp32 on the CPU, from transformers' layout or, Emu3's, the one BAAI published.

    Raises TokenizerLoadError when they are not those of a vision tokenizer.
    """
    kind = config_of(str(folder))["model_type"]
    transformers_logging.disable_progress_bar()
    try:
        if kind == vq_published.MODEL_TYPE:
            return vq_published.load_published(folder)
        return _CLASSES[kind].from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise TokenizerLoadError(
            f"{folder}: cannot be loaded: {error}; save it again with save_pretrained()"
        ) from error


@torch.no_grad()
def nearest_codes(z_ND: Tensor, codebook_KD: Tensor, norms_K: Tensor) -> Tensor:
    """Index of the nearest code (L2; the first of equals), int64 (N,). `norms_K` is (codebook_KD**2).sum(1)."""
    elements = _CACHED_ELEMENTS if z_ND.device.type == "cpu" else _DISTANCE_ELEMENTS
    rows = max(1, min(len(z_ND), elements // len(codebook_KD)))
    codes = torch.empty(len(z_ND), dtype=torch.int64, device=z_ND.device)
    distances = z_ND.new_empty(rows, len(codebook_KD))
    products = torch.empty_like(distances)
    for start in range(0, len(z_ND), rows):
        z = z_ND[start : start + rows]
        found, product = distances[: len(z)], products[: len(z)]
        # The reference's order of operations: another one would settle near-ties differently.
        torch.add((z**2).sum(1, keepdim=True), norms_K, out=found)
        torch.matmul(z, codebook_KD.T, out=product)
        found -= product.mul_(2)
        codes[start : start + rows] = found.argmin(1)
    return codes


def to_pixels(frames: Tensor) -> Tensor:
    """uint8 (..., H, W, 3) -> fp32 (..., 3, H, W) in -1..1: x / 255, then mean = std = 0.5."""
    return ((frames.float() / 255 - 0.5) / 0.5).movedim(-1, -3).contiguous()


def to_frames(pixels: Tensor) -> Tensor:
    """fp (..., 3, H, W) in about -1..1 -> uint8 (..., H, W, 3), rounded to the nearest."""
    return ((pixels.float() * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1).contiguous()


class VisionTokenizer:
    """Images and clips <-> codes. Frozen, in eval mode (train mode would let BatchNorm statistics drift).

    Arrays in and out are NumPy. Nothing in the model looks across samples, yet convolutions sum in another order when
    the batch changes, and the last bit of a latent could settle a near-tie differently. So the CPU takes one image or
    group at a time, which is also up to twice as fast (its caches hold one image, not 16). One pass of a GPU holds at
    most `max_batch_px` pixels; 2^20 need about 4 GB with Emu3's own weights.
    """

    def __init__(
        self,
        model: Model,
        identity: str,
        device: str = "cpu",
        dtype: str = "float32",
        max_batch_px: int = 1 << 20,
    ) -> None:
        self.identity = identity
        self._device = torch.device(device)
        self._dtype = getattr(torch, dtype)
        self._max_batch_px = 1 if self._device.type == "cpu" else max_batch_px
        # The nearest code is searched in fp32 whatever `dtype` is: in bf16 codes next to a border flip.
        self._codec = Emu3Codec(model) if isinstance(model, Emu3VQVAE) else StillCodec(model)
        self._codebook_KD = model.quantize.embedding.weight.detach().to(self._device, torch.float32)
        self._norms_K = (self._codebook_KD**2).sum(1)
        self.model = model.eval().requires_grad_(False)
        self.model.to(device=self._device, dtype=self._dtype)
        if self._device.type == "cpu" and self._dtype != torch.float32:
            # Encodes in 0.8 of the time and decodes no faster. In fp32 sums in another order could settle near-ties in
            # another way than the reference does.
            for module in self.model.encoder.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(memory_format=torch.channels_last)

    @classmethod
    def load(
        cls, name: str, device: str = "cpu", dtype: str = "float32", max_batch_px: int = 1 << 20
    ) -> "VisionTokenizer":
        """`name`: a hub name, a local path, or `builtin`. Raises TokenizerLoadError."""
        folder = folder_of(name)
        return cls(load_model(folder), weights_id(folder), device, dtype, max_batch_px)

    @property
    def codebook_size(self) -> int:
        """How many codes there are; codes are 0..codebook_size - 1."""
        return len(self._codebook_KD)

    @property
    def spatial_factor(self) -> int:
        """Pixels of a side that become one code."""
        return self._codec.spatial_factor

    @property
    def temporal_factor(self) -> int:
        """Frames that become one grid of codes; 1 when only images are coded."""
        return self._codec.temporal_factor

    @property
    def codes_clips(self) -> bool:
        """Whether clips are coded; else `encode_clips` and `decode_clips` raise ValueError."""
        return self._codec.clips

    @property
    def decodes(self) -> bool:
        """Whether codes become pixels again; else `decode_images` raises ValueError."""
        return self._codec.decodes

    @torch.inference_mode()
    def encode_images(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3) RGB -> codes int64 (B, h, w). Raises ValueError for other shapes or types."""
        self._check_frames(frames, 4)
        codes = []
        for part in self._parts(frames, frames.shape[1] * frames.shape[2]):
            codes.append(self._quantize(self._codec.encode_images(self._pixels(part)))[:, 0])
        return self._gathered(codes, frames)

    @torch.inference_mode()
    def encode_clips(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (B, T, H, W, 3) RGB, T a multiple of 4 -> codes int64 (B, T / 4, h, w), each group coded alone.

        Raises ValueError for other shapes or types, and when the tokenizer codes images only.
        """
        codec = self._clip_codec()
        self._check_frames(frames, 5)
        num_clips, num_frames, height, width = frames.shape[:4]
        if num_frames % self.temporal_factor:
            raise ValueError(
                f"{num_frames} frames are no multiple of {self.temporal_factor}; trim with geometry.trim_to_groups()"
            )
        groups = np.ascontiguousarray(frames).reshape(-1, self.temporal_factor, height, width, 3)
        codes = []
        for part in self._parts(groups, self.temporal_factor * height * width):
            codes.append(self._quantize(codec.encode_groups(self._pixels(part))))
        gathered = self._gathered(codes, groups)
        return gathered.reshape(num_clips, num_frames // self.temporal_factor, *gathered.shape[2:])

    @torch.inference_mode()
    def decode_images(self, codes: np.ndarray) -> np.ndarray:
        """Codes (B, h, w) -> uint8 (B, H, W, 3) RGB. Raises ValueError for codes that the codebook lacks, or without a
        decoder.
        """
        if not self.decodes:
            raise ValueError(
                f"{type(self.model).__name__} has no decoder in transformers; draw pixels with a JanusVQVAE or an "
                f"Emu3VQVAE ({CLIP_TOKENIZERS})"
            )
        self._check_codes(codes, 3)
        side_px = self.spatial_factor
        frames = []
        for part in self._parts(codes, codes.shape[1] * codes.shape[2] * side_px**2):
            frames.append(to_frames(self._codec.decode_images(self._vectors(part[:, None]))).cpu().numpy())
        return np.concatenate(frames) if frames else np.zeros((0, *self._size_px(codes), 3), np.uint8)

    @torch.inference_mode()
    def decode_clips(self, codes: np.ndarray) -> np.ndarray:
        """Codes (B, t, h, w) -> uint8 (B, 4t, H, W, 3) RGB, each group alone. Raises ValueError as decode_images."""
        codec = self._clip_codec()
        self._check_codes(codes, 4)
        num_clips, num_groups = codes.shape[:2]
        height, width = self._size_px(codes)
        groups = np.ascontiguousarray(codes).reshape(-1, 1, *codes.shape[2:])
        frames = []
        for part in self._parts(groups, self.temporal_factor * height * width):
            frames.append(to_frames(codec.decode_groups(self._vectors(part))).cpu().numpy())
        gathered = np.concatenate(frames) if frames else np.zeros(0, np.uint8)
        return gathered.reshape(num_clips, num_groups * self.temporal_factor, height, width, 3)

    def _clip_codec(self) -> Emu3Codec:
        if not isinstance(self._codec, Emu3Codec):
            raise ValueError(
                f"{type(self.model).__name__} codes images only; code clips with an Emu3VQVAE ({CLIP_TOKENIZERS})"
            )
        return self._codec

    def _parts(self, items: np.ndarray, px_each: int) -> list[np.ndarray]:
        count = max(1, self._max_batch_px // max(1, px_each))
        return [items[start : start + count] for start in range(0, len(items), count)]

    def _pixels(self, frames: np.ndarray) -> Tensor:
        return to_pixels(torch.tensor(frames).to(self._device)).to(self._dtype)

    def _quantize(self, z_BDTHW: Tensor) -> Tensor:
        z_BTHWD = z_BDTHW.movedim(1, -1).float()
        codes = nearest_codes(z_BTHWD.reshape(-1, z_BTHWD.shape[-1]), self._codebook_KD, self._norms_K)
        return codes.view(z_BTHWD.shape[:-1])

    def _vectors(self, codes_BTHW: np.ndarray) -> Tensor:
        codes = torch.from_numpy(codes_BTHW.astype(np.int64)).to(self._device)
        return self._codebook_KD[codes].movedim(-1, 1).to(self._dtype).contiguous()

    def _gathered(self, codes: list[Tensor], frames: np.ndarray) -> np.ndarray:
        if codes:
            return torch.cat(codes).cpu().numpy()
        height, width = frames.shape[-3] // self.spatial_factor, frames.shape[-2] // self.spatial_factor
        return np.zeros((0, *frames.shape[1:-3], height, width), np.int64)

    def _size_px(self, codes: np.ndarray) -> tuple[int, int]:
        return codes.shape[-2] * self.spatial_factor, codes.shape[-1] * self.spatial_factor

    def _check_frames(self, frames: np.ndarray, num_dims: int) -> None:
        if frames.dtype != np.uint8 or frames.ndim != num_dims or frames.shape[-1] != 3:
            wanted = "(B, H, W, 3)" if num_dims == 4 else "(B, T, H, W, 3)"
            raise ValueError(f"frames are {frames.dtype} {frames.shape}; give uint8 RGB {wanted}")
        if frames.shape[-3] % self.spatial_factor or frames.shape[-2] % self.spatial_factor:
            raise ValueError(
                f"{frames.shape[-2]}x{frames.shape[-3]} px: sides must be multiples of {self.spatial_factor}; resize "
                "to geometry.fit_area() first (padding would change the codes of the whole image)"
            )

    def _check_codes(self, codes: np.ndarray, num_dims: int) -> None:
        if codes.dtype.kind not in "iu" or codes.ndim != num_dims:
            wanted = "(B, h, w)" if num_dims == 3 else "(B, t, h, w)"
            raise ValueError(f"codes are {codes.dtype} {codes.shape}; give integers {wanted}")
        if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook_size:
            raise ValueError(
                f"codes span {codes.min()}..{codes.max()}, the codebook 0..{self.codebook_size - 1}; take the language "
                "model's offset off, and decode with the tokenizer that encoded"
            )
