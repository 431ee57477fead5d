"""Given weights and their processor, from a hub name or a folder."""

from pathlib import Path
from typing import Any

import torch

from tokenmill.storage.errors import TrainingError


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
