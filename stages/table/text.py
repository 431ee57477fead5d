"""Text from outside, cleaned once where it comes in: captions, documents, names, JSON, headers.

What no file of ours could hold, or would act on whoever looks at it, goes: lone surrogates become U+FFFD, control
characters but line breaks and tabs, and characters that turn the direction of a line (Unicode UAX 9), are dropped.
"""

import re
from typing import Any

MAX_CAPTION_CHARS = 1 << 16
_SURROGATES = re.compile("[\ud800-\udfff]")
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean(text: str, max_chars: int | None = None) -> str:
    """`text` that can be stored and shown, at most `max_chars` of it."""
    text = text if max_chars is None else text[:max_chars]
    if text.isascii() and text.isprintable():
        return text
    return _UNSEEN.sub("", _SURROGATES.sub("\ufffd", text))


def clean_name(name: str) -> str:
    """A name as text that tells it from every other: bytes that are no UTF-8 as `\\udcff`, NUL and the like as they
    are in source code.
    """
    if name.isascii() and name.isprintable():
        return name
    return "".join(c if not (_SURROGATES.match(c) or _UNSEEN.match(c)) else ascii(c)[1:-1] for c in name)


def clean_fields(value: Any) -> Any:
    """A JSON document with all its texts and keys cleaned."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key)): clean_fields(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [clean_fields(inner) for inner in value]
    return value
