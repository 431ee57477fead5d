"""Pixels <-> codes: one interface over the vision tokenizers of `transformers`; exact, no whole matrix of distances.

| class | codes | networks |
| --- | --- | --- |
| Emu3VQVAE | images and clips | tokenizer/vision/emu3.py |
| JanusVQVAE | images | tokenizer/vision/stills.py |
| ChameleonVQVAE | images, encoding only | tokenizer/vision/stills.py |

Codes are those of the reference class, in fp32 on a CPU, without its whole matrix of distances
(tokenizer/vision/nearest.py). How many items go through a network at once is tokenizer/vision/batching.py's to say.

Shapes: B batch, N items of a pass, T frames, t groups, H W pixels, h w codes, D dimensions of a code, K codes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ChameleonVQVAE, Emu3VQVAE, JanusVQVAE
from transformers.utils import logging as transformers_logging

from tokenmill.storage.cpu import quick_dtype
from tokenmill.storage.failures import find
from tokenmill.storage.identity import weights_id
from tokenmill.storage.tensors import check_sizes
from tokenmill.tokenizer.vision import published
from tokenmill.tokenizer.vision.batching import DECODE_LAYERS, ENCODE_LAYERS, Passes, px_that_fit
from tokenmill.tokenizer.vision.emu3 import Emu3Codec
from tokenmill.tokenizer.vision.nearest import nearest_codes
from tokenmill.tokenizer.vision.stills import StillCodec
from tokenmill.tokenizer.vision.weights import CLIP_TOKENIZERS, TokenizerLoadError, config_of, folder_of

_CLASSES: dict[str, Any] = {"emu3_vqgan": Emu3VQVAE, "chameleon_vqgan": ChameleonVQVAE, "janus_vqgan": JanusVQVAE}

Model: TypeAlias = Emu3VQVAE | ChameleonVQVAE | JanusVQVAE


def load_model(folder: Path) -> Model:
    """The weights in `folder`, fp32 on the CPU, from transformers' layout or, Emu3's, the one BAAI published.

    Raises TokenizerLoadError when they are not those of a vision tokenizer.
    """
    kind = config_of(str(folder))["model_type"]
    transformers_logging.disable_progress_bar()
    try:
        if kind == published.MODEL_TYPE:
            return published.load_published(folder)
        check_sizes(folder, _CLASSES[kind], _CLASSES[kind].config_class.from_pretrained(folder))
        model, found = _CLASSES[kind].from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        if lacking := sorted(found["missing_keys"]):  # transformers would draw them at random
            raise ValueError(f"no weights {', '.join(lacking)}")
        return model
    except Exception as error:  # of damaged files libraries raise whatever comes
        if not isinstance(error, OSError | RuntimeError | ValueError) and find(error):
            raise
        raise TokenizerLoadError(
            f"{folder}: cannot be loaded: {error}; save it again with save_pretrained()"
        ) from error


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
    most `max_batch_px` pixels (null: what fits its free memory). `compile_mode` is torch.compile's, for sizes that
    come often; like another GPU, it may settle near-ties differently.
    """

    def __init__(
        self,
        model: Model,
        identity: str,
        device: str = "cpu",
        dtype: str = "float32",
        max_batch_px: int | None = None,
        compile_mode: str | None = None,
    ) -> None:
        self.identity = identity
        self._device = torch.device(device)
        self.dtype = quick_dtype(self._device.type != "cpu") if dtype == "auto" else dtype
        self._dtype: torch.dtype = getattr(torch, self.dtype)
        # The nearest code is searched in fp32 whatever `dtype` is: in bf16 codes next to a border flip.
        self._codec = Emu3Codec(model) if isinstance(model, Emu3VQVAE) else StillCodec(model)
        self._codebook_KD = model.quantize.embedding.weight.detach().to(self._device, torch.float32)
        self._norms_K = (self._codebook_KD**2).sum(1)
        self.model = model.eval().requires_grad_(False)
        self.model.to(device=self._device, dtype=self._dtype)
        if self._dtype != torch.float32:
            # Measured on a CPU: 0.8 of the time to encode, 0.4 to 0.6 to decode. In fp32 sums in another order could
            # settle near-ties in another way than the reference does.
            for module in self.model.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(memory_format=torch.channels_last)
        base, multipliers = self.model.config.base_channels, self.model.config.channel_multiplier
        encoded = base * multipliers[0]
        decoded = base * max(multipliers[:2])  # its last but one block ends at full size

        def passes(call: Callable[[Tensor], Tensor], layers: float, widest: int) -> Passes:
            return Passes(call, self._device, self._batch_px(max_batch_px, layers), widest, compile_mode)

        self._encode_stills = passes(self._codes_of_stills, ENCODE_LAYERS, encoded)
        self._encode_groups = passes(self._codes_of_groups, ENCODE_LAYERS, encoded)
        self._decode_stills = passes(self._frames_of_stills, DECODE_LAYERS, decoded)
        self._decode_groups = passes(self._frames_of_groups, DECODE_LAYERS, decoded)

    @classmethod
    def load(
        cls,
        name: str,
        device: str = "cpu",
        dtype: str = "float32",
        max_batch_px: int | None = None,
        compile_mode: str | None = None,
    ) -> "VisionTokenizer":
        """`name`: a hub name, a local path, or `builtin`; `dtype` auto is what `device` multiplies in.

        Raises TokenizerLoadError.
        """
        folder = folder_of(name)
        return cls(load_model(folder), weights_id(folder), device, dtype, max_batch_px, compile_mode)

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
        if not len(frames):
            return np.zeros((0, *self._grid(frames)), np.int64)
        return self._run(self._encode_stills, frames, frames.shape[1] * frames.shape[2])

    @torch.inference_mode()
    def encode_clips(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (B, T, H, W, 3) RGB, T a multiple of 4 -> codes int64 (B, T / 4, h, w), each group coded alone.

        Raises ValueError for other shapes or types, and when the tokenizer codes images only.
        """
        self._check_codes_clips()
        self._check_frames(frames, 5)
        num_clips, num_frames, height, width = frames.shape[:4]
        if num_frames % self.temporal_factor:
            raise ValueError(
                f"{num_frames} frames are no multiple of {self.temporal_factor}; trim with geometry.trim_to_groups()"
            )
        shape = (num_clips, num_frames // self.temporal_factor, *self._grid(frames))
        if not np.prod(shape):
            return np.zeros(shape, np.int64)
        groups = np.ascontiguousarray(frames).reshape(-1, self.temporal_factor, height, width, 3)
        return self._run(self._encode_groups, groups, height * width, self.temporal_factor).reshape(shape)

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
        height, width = self._size_px(codes)
        if not codes.size:
            return np.zeros((len(codes), height, width, 3), np.uint8)
        return self._run(self._decode_stills, codes.astype(np.int64), height * width)

    @torch.inference_mode()
    def decode_clips(self, codes: np.ndarray) -> np.ndarray:
        """Codes (B, t, h, w) -> uint8 (B, 4t, H, W, 3) RGB, each group alone. Raises ValueError as decode_images."""
        self._check_codes_clips()
        self._check_codes(codes, 4)
        num_clips, num_groups = codes.shape[:2]
        height, width = self._size_px(codes)
        shape = (num_clips, num_groups * self.temporal_factor, height, width, 3)
        if not codes.size:
            return np.zeros(shape, np.uint8)
        groups = codes.astype(np.int64).reshape(-1, *codes.shape[2:])
        return self._run(self._decode_groups, groups, height * width, self.temporal_factor).reshape(shape)

    def _run(self, passes: Passes, items: np.ndarray, frame_px: int, num_frames: int = 1) -> np.ndarray:
        """Results of all items, each of so many frames of `frame_px` pixels."""
        if self._device.type != "cpu" and self._dtype != torch.float32 and isinstance(self._codec, Emu3Codec):
            self._codec.attend_in_half_precision(frame_px // self.spatial_factor**2)
        return passes(items, num_frames * frame_px)

    def _batch_px(self, wanted: int | None, layers: float) -> int:
        if self._device.type == "cpu":
            return 1
        if wanted is not None:
            return wanted
        free_bytes, _ = torch.cuda.mem_get_info(self._device)
        return px_that_fit(free_bytes, self.model.config.base_channels, self._dtype.itemsize, layers)

    # What one pass does, on the device. N items; those of clips are groups.

    def _codes_of_stills(self, frames_NHWC: Tensor) -> Tensor:
        return self._quantize(self._codec.encode_images(to_pixels(frames_NHWC).to(self._dtype)))[:, 0]

    def _codes_of_groups(self, frames_NTHWC: Tensor) -> Tensor:
        assert isinstance(self._codec, Emu3Codec)
        return self._quantize(self._codec.encode_groups(to_pixels(frames_NTHWC).to(self._dtype)))

    def _frames_of_stills(self, codes_NHW: Tensor) -> Tensor:
        return to_frames(self._codec.decode_images(self._vectors(codes_NHW)))

    def _frames_of_groups(self, codes_NHW: Tensor) -> Tensor:
        assert isinstance(self._codec, Emu3Codec)
        frames = to_frames(self._codec.decode_groups(self._vectors(codes_NHW)))
        return frames.unflatten(0, (len(codes_NHW), self.temporal_factor))

    def _quantize(self, z_NDTHW: Tensor) -> Tensor:
        z_NTHWD = z_NDTHW.movedim(1, -1).float()
        codes = nearest_codes(z_NTHWD.reshape(-1, z_NTHWD.shape[-1]), self._codebook_KD, self._norms_K)
        return codes.view(z_NTHWD.shape[:-1])

    def _vectors(self, codes_NHW: Tensor) -> Tensor:
        return self._codebook_KD[codes_NHW[:, None]].movedim(-1, 1).to(self._dtype).contiguous()

    def _grid(self, frames: np.ndarray) -> tuple[int, int]:
        return frames.shape[-3] // self.spatial_factor, frames.shape[-2] // self.spatial_factor

    def _size_px(self, codes: np.ndarray) -> tuple[int, int]:
        return codes.shape[-2] * self.spatial_factor, codes.shape[-1] * self.spatial_factor

    def _check_codes_clips(self) -> None:
        if not self.codes_clips:
            raise ValueError(
                f"{type(self.model).__name__} codes images only; code clips with an Emu3VQVAE ({CLIP_TOKENIZERS})"
            )

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
