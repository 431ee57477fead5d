"""Given weights and their processor, from a hub name or a folder; LoRA beside them, by `peft`, where it is wanted."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tokenmill.storage.errors import TrainingError
from tokenmill.training.captioner.config import LoraConfig


def load(name: str, dtype: torch.dtype, looks: bool = True) -> tuple[Any, Any]:
    """Model in `dtype`, and processor; where it only reads, a language model and its tokenizer will do. Raises
    TrainingError.
    """
    try:
        return _opened(str(Path(name).expanduser()), dtype, looks)
    except (OSError, RuntimeError, KeyError, ValueError, AttributeError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = "an image-text-to-text model and of its processor" if looks else "a language model and of its tokenizer"
        raise TrainingError(
            f"captioner.train.model={name}: cannot be loaded ({reason}); pass a hub name, or a folder that "
            f"save_pretrained() of {what} wrote"
        ) from error


def _opened(where: str, dtype: torch.dtype, looks: bool) -> tuple[Any, Any]:
    import transformers as t

    how: dict[str, Any] = {"use_safetensors": True, "dtype": dtype}
    if not looks and type(t.AutoConfig.from_pretrained(where)) not in t.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return t.AutoModelForCausalLM.from_pretrained(where, **how), t.AutoTokenizer.from_pretrained(where)
    model = t.AutoModelForImageTextToText.from_pretrained(where, **how)
    return model, t.AutoProcessor.from_pretrained(where)


def check_lora(config: LoraConfig | None) -> None:
    """Raises TrainingError where LoRA is wanted and its library is not installed."""
    if config is not None and find_spec("peft") is None:
        raise TrainingError(
            "captioner.train.lora needs peft: pip install peft, or set captioner.train.lora=null, which trains all "
            "weights"
        )


def with_lora(model: Any, config: LoraConfig) -> Any:
    """The model with matrices that learn, float32, beside weights that do not. Raises TrainingError."""
    check_lora(config)
    import peft

    modules = config.modules
    if isinstance(modules, str) and modules != "all-linear":
        try:
            re.compile(modules)
        except re.error as error:
            raise TrainingError(f"captioner.train.lora.modules={modules}: no regular expression ({error})") from error
    made = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=modules, bias="none"
    )
    try:
        return peft.get_peft_model(model, made)
    except ValueError as error:
        raise TrainingError(f"captioner.train.lora.modules={modules}: {str(error).splitlines()[0]}") from error


def merged(model: Any) -> Any:
    """The model with what LoRA learned in its weights; a model without LoRA as it is."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
