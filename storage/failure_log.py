"""A traceback -> a file, for who looks into a failure, without credentials; and texts without credentials."""

import contextlib
import os
import platform
import re
import sys
import tempfile
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

_PACKAGES = ("tokenmill", "ray", "torch", "transformers", "pyarrow", "deltalake", "boto3", "av")
_HIDDEN = "[hidden]"
_SECRET_NAMES = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
_MIN_SECRET_CHARS = 8  # shorter values of such variables are words like "true", which stand everywhere
_SECRETS = (
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}\b()()"),
    re.compile(r"(://)[^/\s:@'\"]+:[^/\s@'\"]+(@)"),  # user and password of an address
    re.compile(
        r"(?i)((?:x-amz-(?:signature|credential|security-token)|signature|authorization|passw(?:or)?d|"
        r"(?:secret|access|api|auth|session|security)[\w-]*(?:key|token)(?:_?id)?)['\"]?\s*[=:>]\s*['\"]?"
        r"(?:(?:bearer|basic|aws4-hmac-sha256)\s+)?)[^\s'\"&,;<>]{4,}()"
    ),
)


def redacted(text: str) -> str:
    """`text` without keys, tokens, passwords and signatures, and without what the environment calls so."""
    for name, value in os.environ.items():
        if len(value) >= _MIN_SECRET_CHARS and _SECRET_NAMES.search(name) and not os.path.exists(value):
            text = text.replace(value, _HIDDEN)
    for pattern in _SECRETS:
        text = pattern.sub(rf"\1{_HIDDEN}\2", text)
    return text


def write_log(error: BaseException, command: str, folders: Sequence[str]) -> str | None:
    """Keep the traceback of `error` in the first of `folders`, else of temporary ones, that takes it.

    Returns the file's path; null where no disk takes it.
    """
    now = datetime.now(UTC)
    head = [f"{now:%Y-%m-%d %H:%M:%S} UTC", command, f"Python {sys.version.split()[0]}, {platform.platform()}"]
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            head.append(f"{name} {metadata.version(name)}")
    text = redacted("\n".join([*head, "", *traceback.format_exception(error)]))
    for folder in (*folders, tempfile.gettempdir(), "/dev/shm", str(Path.home())):
        path = Path(folder) / f"tokenmill-{now:%Y%m%d-%H%M%S}-{os.getpid()}.log"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
            continue
        return str(path)
    return None
