"""LoRA (arXiv 2106.09685) by `peft`: small matrices that learn beside weights that do not, and these put together."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from tokenmill.storage.errors import TrainingError
from tokenmill.training.config import LoraConfig

_ADAPTER = "default"
_BASE = ".base_layer."


def with_lora(model: Any, config: LoraConfig, key: str) -> Any:
    """A model of `peft` around it, with matrices that learn, float32, beside weights that do not. Raises
    TrainingError.
    """
    config.check_installed(key)
    import peft

    with _as_wrong_modules(config, key):
        return peft.get_peft_model(model, _peft_config(config))


def put_lora(model: nn.Module, config: LoraConfig, seed: int, key: str) -> None:
    """The same inside the model, which stays the class that it is; what is drawn hangs on `seed` alone. Raises
    TrainingError.
    """
    config.check_installed(key)
    import peft

    with torch.random.fork_rng(devices=[]), _as_wrong_modules(config, key):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(_peft_config(config), model)


def merged(model: Any) -> Any:
    """The model of `with_lora` with what LoRA learned in its weights; a model without LoRA as it is."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def plain_weights(model: nn.Module) -> dict[str, list[torch.Tensor]]:
    """By the names of a model without LoRA, each weight: alone, or with the two matrices whose product, times the last,
    a scalar, is added to it.
    """
    layers: dict[str, Any] = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    found: dict[str, list[torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        if ".lora_" in name:
            continue
        owner, has_base, rest = name.partition(_BASE)
        parts = [tensor.detach()]
        if has_base and rest == "weight":
            layer = layers[owner]
            pair = [matrices[_ADAPTER].weight.detach() for matrices in (layer.lora_B, layer.lora_A)]
            parts += [*pair, torch.tensor(float(layer.scaling[_ADAPTER]))]
        found[f"{owner}.{rest}" if has_base else name] = parts
    return found


def put_together(parts: list[torch.Tensor]) -> torch.Tensor:
    """A weight of `plain_weights`, whole; every worker must call it."""
    weight, *more = (part.full_tensor() if isinstance(part, DTensor) else part for part in parts)
    if not more:
        return weight
    b, a, scale = more
    return weight + (b @ a) * scale.to(weight.device)


def adapter_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """What LoRA learned, by the names that `peft` gives it in a file."""
    names = {name: name.replace(f".{_ADAPTER}.", ".") for name, _ in model.named_parameters() if ".lora_" in name}
    state = model.state_dict()
    return {f"base_model.model.{names[name]}": state[name].detach() for name in names}


def save_adapter_config(config: LoraConfig, base: str, folder: str) -> None:
    """Beside these weights, for `peft`."""
    made = _peft_config(config)
    made.base_model_name_or_path, made.inference_mode = base, True
    made.save_pretrained(folder)


def _peft_config(config: LoraConfig) -> Any:
    import peft

    return peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=config.modules, bias="none"
    )


@contextmanager
def _as_wrong_modules(config: LoraConfig, key: str) -> Iterator[None]:
    modules = config.modules
    if isinstance(modules, str) and modules != "all-linear":
        try:
            re.compile(modules)
        except re.error as error:
            raise TrainingError(f"{key}.modules={modules}: no regular expression ({error})") from error
    try:
        yield
    except ValueError as error:
        raise TrainingError(f"{key}.modules={modules}: {str(error).splitlines()[0]}") from error
