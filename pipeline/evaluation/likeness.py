"""Drawings beside prompts, by CLIP, and beside held-out pictures, by the distance of their features: FID and KID.

FID (Heusel et al. 2017) and KID (Binkowski et al. 2018) are torchmetrics'; features are those of Inception, of its
published file, or the embeddings of a CLIP model, of length 1, which say more of modern pictures (Jayasumana et al.
2024). What two kinds of features give is not comparable. FID of few pictures is too high, and the fewer the higher;
KID has no such bias.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from tokenmill.pipeline.config import ConfigError
from tokenmill.stages import make_view
from tokenmill.stages.embed.models import ClipModel
from tokenmill.tokenizer.vision.evaluation.perceptual import Fid, WeightsError

FEW = 2_048  # pictures: below, FID says how many there were more than how good they are
_BATCH = 64
_INCEPTION_PX = 299
_SUBSETS = 50
_SUBSET = 1_000


def _views(pictures: list[np.ndarray], side_px: int) -> np.ndarray:
    """uint8 (N, side, side, 3): the shorter side resized, the middle cut out."""
    views = [np.frombuffer(make_view(picture, side_px), np.uint8) for picture in pictures]
    return np.stack(views).reshape(-1, side_px, side_px, 3)


class Clip:
    """Drawings beside their prompts. `name`: as curate.clip.model. Raises ClipLoadError."""

    def __init__(self, name: str, device: str):
        self._model = ClipModel(name, device)

    def likeness(self, pictures: list[np.ndarray], texts: list[str]) -> float:
        """Mean cosine of each picture and its text."""
        total = 0.0
        for first in range(0, len(pictures), _BATCH):
            part = slice(first, first + _BATCH)
            seen = self._model.embed_images(_views(pictures[part], self._model.size_px))
            total += float((seen * self._model.embed_texts(texts[part])).sum())
        return total / len(pictures)


class Features:
    """Pictures -> their features. `name`: a file with Inception's published weights, or a CLIP model by a hub name or a
    folder. Raises ConfigError, ClipLoadError.
    """

    def __init__(self, name: str, device: str):
        self._device = device
        self._clip: ClipModel | None = None
        self._inception: torch.nn.Module | None = None
        if not Path(name).expanduser().is_file():
            self._clip = ClipModel(name, device)
            return
        try:
            self._inception = Fid(Path(name).expanduser(), device).inception
        except WeightsError as error:
            raise ConfigError(f"--features {error}") from None

    @torch.inference_mode()
    def of(self, pictures: list[np.ndarray]) -> torch.Tensor:
        """float32 (N, D), on the CPU."""
        return torch.cat([self._batch(pictures[first : first + _BATCH]) for first in range(0, len(pictures), _BATCH)])

    def _batch(self, pictures: list[np.ndarray]) -> torch.Tensor:
        if self._clip is not None:
            return torch.from_numpy(self._clip.embed_images(_views(pictures, self._clip.size_px)))
        assert self._inception is not None
        views = torch.from_numpy(_views(pictures, _INCEPTION_PX)).movedim(-1, 1).to(self._device)
        return self._inception(views).float().cpu()


@dataclass(frozen=True)
class Distance:
    """FID; KID in the mean over subsets of `subset` pictures, and its deviation between them."""

    fid: float
    kid: float
    kid_deviation: float
    subset: int
    num_subsets: int = _SUBSETS


class _AsGiven(torch.nn.Module):
    """In place of an extractor: features come in."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def distance(held_out: torch.Tensor, drawn: torch.Tensor, seed: int) -> Distance:
    """Of features (N, D) and (M, D), four of each at least; `seed` chooses the subsets."""
    subset = min(_SUBSET, min(len(held_out), len(drawn)) // 2)
    extractor = _AsGiven(held_out.shape[1])
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance`")
        torch.manual_seed(seed)
        fid = FrechetInceptionDistance(feature=extractor)
        kid = KernelInceptionDistance(feature=extractor, subsets=_SUBSETS, subset_size=subset)
        for metric in (fid, kid):
            metric.update(held_out, real=True)
            metric.update(drawn, real=False)
        mean, deviation = kid.compute()
        return Distance(float(fid.compute()), float(mean), float(deviation), subset)
