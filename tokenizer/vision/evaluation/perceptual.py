"""Pictures and their reconstructions -> LPIPS (AlexNet, as in Emu3's Table 2) and FID, from weights given by path; and
a distance that needs no weights, for training.

Nothing is fetched. torchmetrics holds LPIPS' linear layers and both networks' code; the networks' weights are
torchvision's AlexNet (`alexnet-owt-*.pth`) and the Inception of torch-fidelity (`weights-inception-2015-12-05-*.pth`).
Files are safetensors or .pth, the latter read without running code.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.functional.image.lpips import _LPIPS
from torchmetrics.image.fid import FrechetInceptionDistance

from tokenmill.storage.errors import UserError
from tokenmill.tokenizer.geometry import SSIM_WINDOW_PX
from tokenmill.tokenizer.vision.evaluation.metrics import LUMA
from tokenmill.tokenizer.vision.vision_tokenizer import to_pixels

_SLICES = {"0": "slice1.0", "3": "slice2.3", "6": "slice3.6", "8": "slice4.8", "10": "slice5.10"}
_SCALES = (1, 2, 4)


def structural_dissimilarity(a: Tensor, b: Tensor) -> Tensor:
    """1 - SSIM of the luma of (N, 3, H, W) in -1..1, the mean over pictures and over scales 1, 1/2, 1/4: 0 when equal.

    Scales at which a side is shorter than the window of 11 px are left out. What edges and texture lose counts, where
    L2 sees next to nothing: thin letters.
    """
    luma = torch.tensor(LUMA, device=a.device).view(1, 3, 1, 1)
    a, b = (((pixels + 1) / 2 * luma).sum(1, keepdim=True) for pixels in (a, b))  # SSIM is of light, from 0 up
    scales = [scale for scale in _SCALES if min(a.shape[-2:]) // scale >= SSIM_WINDOW_PX]
    return 1 - torch.stack([_ssim(avg_pool2d(a, scale), avg_pool2d(b, scale)) for scale in scales]).mean()


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    found = structural_similarity_index_measure(a, b, data_range=1.0)
    assert isinstance(found, Tensor)
    return found


class WeightsError(UserError, ValueError):
    """A file does not hold the weights that a metric needs; the message names it and the file to get."""


class Lpips:
    """Learned perceptual distance of two pictures, 0 when equal. Raises WeightsError."""

    def __init__(self, path: Path, device: str) -> None:
        self._device = device
        self._model = _LPIPS(net="alex", pnet_rand=True)
        weights = {}
        for name, tensor in _weights(path).items():
            _, number, kind = (*name.split("."), "", "")[:3]
            if name.startswith("features.") and number in _SLICES:
                weights[f"{_SLICES[number]}.{kind}"] = tensor
        _load(self._model.net, weights, path, "torchvision's AlexNet, such as alexnet-owt-7be5be79.pth")
        self._model.requires_grad_(False).to(device)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Of (N, 3, H, W) in -1..1: (N,), with gradients to both."""
        return self._model(a, b).flatten()

    @torch.inference_mode()
    def __call__(self, a: np.ndarray, b: np.ndarray) -> list[float]:
        """Of uint8 (N, H, W, 3) and (N, H, W, 3): N distances."""
        a_pixels, b_pixels = (to_pixels(torch.tensor(frames).to(self._device)) for frames in (a, b))
        return self.distance(a_pixels, b_pixels).tolist()


class Fid:
    """Fréchet distance between the Inception features of originals and of reconstructions. Raises WeightsError.

    Few pictures give a value that is too high; the papers compare 5,000 and more.
    """

    def __init__(self, path: Path, device: str) -> None:
        self._device = device
        # torchmetrics loads by path and would unpickle anything: it gets a copy of tensors that were read safely.
        with tempfile.NamedTemporaryFile(prefix="tokenmill-", suffix=".pth") as copy:
            torch.save(_weights(path), copy.name)
            try:
                self._metric = FrechetInceptionDistance(feature_extractor_weights_path=copy.name, antialias=False)
            except RuntimeError as error:
                raise WeightsError(_wrong(path, error, "weights-inception-2015-12-05-6726825d.pth")) from error
        self._metric.to(device)

    @property
    def inception(self) -> torch.nn.Module:
        """uint8 (N, 3, H, W) -> features (N, 2048)."""
        return self._metric.inception

    @torch.inference_mode()
    def add(self, originals: np.ndarray, reconstructions: np.ndarray) -> None:
        """Count in uint8 (N, H, W, 3) and (N, H, W, 3)."""
        for frames, is_real in ((originals, True), (reconstructions, False)):
            self._metric.update(torch.tensor(frames).movedim(-1, 1).to(self._device), real=is_real)

    def value(self) -> float | None:
        """The distance over all that was counted in, which is then forgotten; null for fewer than two pictures."""
        count = int(self._metric.real_features_num_samples)
        found = float(self._metric.compute()) if count > 1 else None
        self._metric.reset()
        return found


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load answers foreign files with a dozen exception types
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{path}: cannot be read as safetensors or a .pth of tensors: {reason}") from error
    if not isinstance(weights, dict):
        raise WeightsError(f"{path}: holds {type(weights).__name__}, not named tensors; give a state dict")
    return weights


def _load(model: torch.nn.Module, weights: dict[str, Tensor], path: Path, wanted: str) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise WeightsError(_wrong(path, error, wanted)) from error


def _wrong(path: Path, error: Exception, wanted: str) -> str:
    return f"{path}: other weights than the metric needs ({str(error).splitlines()[-1].strip()[:100]}); give {wanted}"
