"""Which code this is: the version, and a digest of the modules, which change more often."""

import hashlib
from functools import lru_cache
from importlib import metadata
from pathlib import Path

_FLOORS = ("storage", "tokenizer", "stages", "training", "pipeline")


@lru_cache(maxsize=1)
def code_version() -> str:
    """Such as `0.1.0 (code 1f6e02ab)`; the same for a checkout and for a wheel made of it."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.blake2b(digest_size=4)
    for path in sorted(path for floor in _FLOORS for path in (package / floor).rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{metadata.version('tokenmill')} (code {digest.hexdigest()})"
