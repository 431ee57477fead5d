"""Where a vision tokenizer's weights are, and what identifies them: name -> folder, digest, number of codes.

Reads files only: the command line and the driver need no more, and do not wait seconds for torch.
"""

import json
import re
from pathlib import Path

from tokenizer.identity import weights_id

BUILTIN = "builtin"
BUILTIN_FOLDER = Path(__file__).resolve().parent / "builtin"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class TokenizerLoadError(ValueError):
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
                "Emu3VQVAE.save_pretrained()"
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


def codebook_size(name: str) -> int:
    """How many codes the tokenizer has, from its config alone. Raises TokenizerLoadError."""
    return int(json.loads((folder_of(name) / "config.json").read_text())["codebook_size"])
