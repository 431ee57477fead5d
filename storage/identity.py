"""What identifies a result: strict configs, their fingerprints, and digests of content.

A `Config` says *what* is computed (a model, a resolution) and enters the fingerprint of every row made with it. A
`Resources` says *how* (CPUs, workers, batch sizes); it never enters a fingerprint and never changes a result.
The encoder raises on a value that it does not know instead of falling back to `str()`: an unstable text would silently
redo, or silently not redo, a whole corpus.
"""

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

_DIGEST_BYTES = 16


class Config(BaseModel):
    """Base of all configs: frozen, strict types, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    # Fields that were added later: at their default they stay out of the fingerprint, so what was made before stays
    # valid.
    later_fields: ClassVar[frozenset[str]] = frozenset()


class Resources(BaseModel):
    """How a group of stages runs. Never part of a fingerprint."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


def _canonical(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value).hex()
    if isinstance(value, BaseModel):
        if isinstance(value, Resources):
            raise TypeError("Resources say how, not what: they do not belong in a fingerprint")
        later = value.later_fields if isinstance(value, Config) else frozenset()
        known = type(value).model_fields
        values = {name: getattr(value, name) for name in sorted(known)}
        return {
            name: _canonical(inner)
            for name, inner in values.items()
            if name not in later or inner != known[name].get_default(call_default_factory=True)
        }
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"cannot fingerprint a dict with keys that are not text: {value!r}")
        return {key: _canonical(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    raise TypeError(f"cannot fingerprint a {type(value).__name__}: {value!r}")


def fingerprint_of(*parts: Any) -> str:
    """16 hex digits that change whenever one of `parts` (configs, texts, numbers, lists, dicts) changes.

    Raises TypeError for a value that has no canonical form.
    """
    text = json.dumps(_canonical(list(parts)), separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def content_id(chunks: Iterable[bytes]) -> str:
    """Identity of a file: 32 hex digits of BLAKE2b over its bytes, given in chunks of any size."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def clip_id(file_id: str, start_s: float, end_s: float) -> str:
    """Identity of a clip: that of its file and its time span, to the microsecond."""
    span = f"{file_id}:{round(start_s * 1e6)}-{round(end_s * 1e6)}"
    return hashlib.blake2b(span.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def weights_id(folder: Path) -> str:
    """Identity of a model in a local folder: a digest of its `*config.json` and safetensors files, which are read again
    only where their sizes or times are others.

    Raises FileNotFoundError when the folder holds no safetensors.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder}: no .safetensors file; save the model with save_pretrained()")
    states = [(file, file.stat()) for file in [*sorted(folder.glob("*config.json")), *files]]
    return _digest(tuple((file, state.st_size, state.st_mtime_ns, state.st_ino) for file, state in states))


@lru_cache(maxsize=64)
def _digest(files: tuple[tuple[Path, int, int, int], ...]) -> str:
    """Of names and contents of files; the numbers are their states."""
    digest = hashlib.blake2b(digest_size=8)
    for file, *_ in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
