"""Linear heads on picture embeddings: aesthetic, watermark, not safe for work. One number for a picture.

LAION's aesthetic predictor is such a head on OpenCLIP ViT-L/14 (Emu3 2.1 drops images below 5.5 and clips whose worst
of three frames is below 5). Heads are safetensors files with `weight` (D,) and `bias` (1,); `convert_head` makes them
from LAION's published files.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from tokenmill.storage.errors import UserError


class HeadError(UserError, ValueError):
    """A head's file cannot be used; the message says why and what to do."""


class Head:
    """score = weight . embedding + bias, through a sigmoid where a share is wanted. Raises HeadError."""

    def __init__(self, path: str, dim: int, is_share: bool):
        try:
            tensors = load_file(Path(path).expanduser())
            self._weight, self._bias = tensors["weight"].astype(np.float64).ravel(), float(tensors["bias"].ravel()[0])
        except (OSError, KeyError, ValueError) as error:
            raise HeadError(
                f"{path}: no head ({error}); `tokenmill convert-head` makes one from LAION's published weights"
            ) from error
        except Exception as error:  # safetensors raises an exception type of its own for damaged headers
            raise HeadError(f"{path}: not a safetensors file ({error})") from error
        if len(self._weight) != dim:
            raise HeadError(f"{path}: is made for embeddings of {len(self._weight)} numbers, the model gives {dim}")
        self._is_share = is_share

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """float (N, D), each of length 1 -> float64 (N,)."""
        scores = embeddings.astype(np.float64) @ self._weight + self._bias
        return 1 / (1 + np.exp(-scores)) if self._is_share else scores


def convert_head(source: Path, out: Path) -> int:
    """Published weights, read without unpickling objects -> a head's safetensors file; returns its dimension.

    Takes one linear layer (aesthetic-predictor: `weight`, `bias`) or a chain of them without anything between
    (improved-aesthetic-predictor: `layers.0.weight`, ...), which is one linear map. Raises HeadError.
    """
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
        if "weight" in state:
            layers = [(state["weight"], state["bias"])]
        else:
            numbers = sorted(int(key.split(".")[1]) for key in state if key.endswith(".weight"))
            layers = [(state[f"layers.{number}.weight"], state[f"layers.{number}.bias"]) for number in numbers]
        weight, bias = torch.eye(layers[0][0].shape[1], dtype=torch.float64), torch.zeros(layers[0][0].shape[1])
        bias = bias.double()
        for layer_weight, layer_bias in layers:
            weight, bias = layer_weight.double() @ weight, layer_weight.double() @ bias + layer_bias.double()
    except Exception as error:  # torch.load answers foreign files with a dozen exception types
        raise HeadError(f"{source}: no linear head of LAION's ({str(error).splitlines()[0]})") from error
    if weight.shape[0] != 1:
        raise HeadError(f"{source}: gives {weight.shape[0]} numbers for a picture, a head gives one")
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({"weight": weight[0].float().numpy(), "bias": bias.float().numpy()}, out)
    return int(weight.shape[1])
