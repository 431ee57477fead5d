"""Models that embed pictures and captions in one space: OpenCLIP's (EVA-CLIP too) and transformers' CLIP and SigLIP.

ViT-L-14/openai        an architecture and a tag of weights that OpenCLIP knows
hf-hub:org/name        a model on the hub in OpenCLIP's layout
org/name               a model on the hub in transformers' layout
a folder               either layout, told apart by open_clip_config.json; weights as safetensors, never pickles
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tokenmill.storage.errors import UserError
from tokenmill.storage.identity import fingerprint_of, weights_id

_OPEN_CLIP_FILE = "open_clip_config.json"
_MAX_BATCH = 256


class ClipLoadError(UserError, ValueError):
    """The named model cannot be loaded; the message says why and what to do."""


class _Backend(Protocol):
    mean: Tensor  # (3, 1, 1), of pixels in 0..1
    std: Tensor

    def images(self, pixels_N3SS: Tensor) -> Tensor: ...

    def texts(self, texts: list[str]) -> Tensor: ...


def model_identity(name: str) -> str:
    """What the model's scores hang on: a digest of its files in a folder, else its name. Raises ClipLoadError."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return fingerprint_of("clip", name)
    try:
        return weights_id(folder)
    except FileNotFoundError:
        raise ClipLoadError(
            f"{folder}: holds no .safetensors; load the model once where you trust it and save it with safetensors"
        ) from None


class ClipModel:
    """An embedding model in eval mode: float32 on a CPU, bfloat16 on a GPU.

    `size_px`: side of the pictures that it takes; `dim`: of its embeddings. Raises ClipLoadError.
    """

    def __init__(self, name: str, device: str | torch.device = "cpu"):
        self._device = torch.device(device)
        folder = Path(name).expanduser()
        if folder.is_dir():
            model_identity(name)  # no safetensors: one clear error
        try:
            made = _open_clip(name, folder) if _is_open_clip(name, folder) else _transformers(name)
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ClipLoadError(
                f"{name}: cannot be loaded ({reason}); pass a folder with safetensors or a hub name"
            ) from error
        self._backend, self._module, self.size_px = made
        self._module.to(self._device, torch.bfloat16 if self._device.type == "cuda" else torch.float32).eval()
        self.dim = self.embed_images(np.zeros((1, self.size_px, self.size_px, 3), np.uint8)).shape[1]

    @torch.inference_mode()
    def embed_images(self, views: np.ndarray) -> np.ndarray:
        """uint8 (N, size_px, size_px, 3) RGB -> float32 (N, dim), each of length 1."""
        parts = []
        for first in range(0, len(views), _MAX_BATCH):
            pixels = torch.from_numpy(views[first : first + _MAX_BATCH]).to(self._device).permute(0, 3, 1, 2) / 255
            pixels = (pixels - self._backend.mean.to(self._device)) / self._backend.std.to(self._device)
            parts.append(_unit(self._backend.images(pixels.to(next(self._module.parameters()).dtype))))
        return np.concatenate(parts)

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """float32 (N, dim), each of length 1; texts are cut to the model's context."""
        parts = [
            _unit(self._backend.texts(texts[first : first + _MAX_BATCH])) for first in range(0, len(texts), _MAX_BATCH)
        ]
        return np.concatenate(parts)


def _unit(embedded: Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(embedded.float(), dim=-1).cpu().numpy()


def _is_open_clip(name: str, folder: Path) -> bool:
    if folder.is_dir():
        return (folder / _OPEN_CLIP_FILE).is_file()
    import open_clip

    return name.startswith("hf-hub:") or name.split("/")[0] in open_clip.list_models()


def _channels(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(3, 1, 1)


class _OpenClip:
    def __init__(self, model: Any, tokenizer: Any):
        self._model, self._tokenizer = model, tokenizer
        self.mean, self.std = (_channels(getattr(model.visual, name)) for name in ("image_mean", "image_std"))

    def images(self, pixels_N3SS: Tensor) -> Tensor:
        return self._model.encode_image(pixels_N3SS)

    def texts(self, texts: list[str]) -> Tensor:
        return self._model.encode_text(self._tokenizer(texts).to(next(self._model.parameters()).device))


def _open_clip(name: str, folder: Path) -> tuple[_Backend, torch.nn.Module, int]:
    import open_clip

    if folder.is_dir():
        full, tag = f"local-dir:{folder.resolve()}", None
    elif name.startswith("hf-hub:"):
        full, tag = name, None
    else:
        full, _, tag = name.partition("/")
    model = open_clip.create_model(full, pretrained=tag or None, require_pretrained=True, weights_only=True)
    size = model.visual.image_size
    return _OpenClip(model, open_clip.get_tokenizer(full)), model, int(size[0] if isinstance(size, tuple) else size)


class _Transformers:
    def __init__(self, model: Any, tokenizer: Any, processor: Any):
        self._model, self._tokenizer = model, tokenizer
        self._padding = "max_length" if model.config.model_type.startswith("siglip") else True
        self.mean, self.std = _channels(processor.image_mean), _channels(processor.image_std)

    def images(self, pixels_N3SS: Tensor) -> Tensor:
        return self._model.get_image_features(pixel_values=pixels_N3SS).pooler_output

    def texts(self, texts: list[str]) -> Tensor:
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            texts, padding=self._padding, truncation=True, max_length=length, return_tensors="pt"
        ).to(next(self._model.parameters()).device)
        return self._model.get_text_features(**tokens).pooler_output


def _transformers(name: str) -> tuple[_Backend, torch.nn.Module, int]:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    name = str(Path(name).expanduser())
    model = AutoModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32)
    if not hasattr(model, "get_image_features"):
        raise ValueError(f"a {type(model).__name__} embeds no pictures; take a CLIP or SigLIP model")
    processor = AutoImageProcessor.from_pretrained(name)
    backend = _Transformers(model, AutoTokenizer.from_pretrained(name), processor)
    return backend, model, int(model.config.vision_config.image_size)
