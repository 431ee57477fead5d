"""Where a vision tokenizer's weights are, and what identifies them: name -> folder, digest, number of codes.

Reads files only: the command line and the driver need no more, and do not wait seconds for torch.
"""

import json
import re
from pathlib import Path
from typing import Any

from tokenmill.storage.errors import UserError
from tokenmill.storage.identity import weights_id

BUILTIN = "builtin"
BUILTIN_FOLDER = Path(__file__).resolve().parent / "builtin"
CLIP_TOKENIZERS = "BAAI/Emu3-VisionTokenizer, or builtin"
_CLIP_TYPES = ("emu3_vqgan", "Emu3VisionVQ")  # transformers' layout and the published one
_TYPES = (*_CLIP_TYPES, "chameleon_vqgan", "janus_vqgan")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class TokenizerLoadError(UserError, ValueError):
    """The named vision tokenizer cannot be loaded; the message says from where, why, and what to do."""


def folder_of(name: str) -> Path:
    """The local folder of a tokenizer: the built-in one, `name` itself, or the hub's snapshot (downloaded once).

    Raises TokenizerLoadError when there is none.
    """
    folder = BUILTIN_FOLDER if name == BUILTIN else Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise TokenizerLoadError(
                f"{folder}: holds no config.json with .safetensors beside it; pass a hub name or a folder written by "
                "save_pretrained()"
            )
        return folder
    if name == BUILTIN or not _HUB_NAME.fullmatch(name):
        raise TokenizerLoadError(f"{folder}: no such folder; pass a hub name, a local path, or {BUILTIN!r}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "*.safetensors"]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TokenizerLoadError(
            f"{name}: no such folder, and the hub did not give it ({reason}); pass a local path or {BUILTIN!r}"
        ) from error


def identity(name: str) -> str:
    """Digest of the tokenizer's weights, wherever they lie. Raises TokenizerLoadError."""
    return weights_id(folder_of(name))


def config_of(name: str) -> dict[str, Any]:
    """The tokenizer's config.json. Raises TokenizerLoadError, also when it is not that of a vision tokenizer."""
    folder = folder_of(name)
    try:
        config = json.loads((folder / "config.json").read_text())
    except (ValueError, RecursionError) as error:
        raise _misfit(folder, f"no JSON: {error}") from None
    if not isinstance(config, dict):
        raise _misfit(folder, "no JSON object")
    if config.get("model_type") not in _TYPES:
        raise TokenizerLoadError(
            f"{folder}: model_type is {config.get('model_type')!r}, not one of {', '.join(_TYPES)}; of a whole Emu3, "
            "Chameleon or Janus model, save `model.vqmodel` with save_pretrained() and pass that folder"
        )
    return config


def _misfit(folder: Path, what: str) -> TokenizerLoadError:
    return TokenizerLoadError(f"{folder}/config.json: {what}; save the tokenizer again with save_pretrained()")


def _value(name: str, ours: str, published: str) -> Any:
    config = config_of(name)
    if ours not in config and published not in config:
        raise _misfit(folder_of(name), f"has neither {ours} nor {published}")
    return config[ours] if ours in config else config[published]


def codebook_size(name: str) -> int:
    """How many codes the tokenizer has, from its config alone. Raises TokenizerLoadError."""
    found = _value(name, "codebook_size", "num_embeddings")
    if not isinstance(found, int):
        raise _misfit(folder_of(name), "its codebook_size is no number")
    return found


def spatial_factor(name: str) -> int:
    """Pixels of a side that become one code, from its config alone. Raises TokenizerLoadError."""
    found = _value(name, "channel_multiplier", "ch_mult")
    if not isinstance(found, list) or not found:
        raise _misfit(folder_of(name), "its channel_multiplier is no list")
    return 2 ** (len(found) - 1)


def codes_clips(name: str) -> bool:
    """Whether the tokenizer codes clips, from its config alone; else images only. Raises TokenizerLoadError."""
    return config_of(name)["model_type"] in _CLIP_TYPES
