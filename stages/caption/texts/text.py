"""The text of a caption: on one line, within a length, without an opening that says nothing."""

import re

from tokenmill.storage.identity import content_id

MAY_OPEN = r"^\W*(in )?(the|this|that) "  # where an opening may stand; quick, for Arrow's regular expressions
_OPENING = re.compile(
    r"^\W*(in )?(the|this|that) (image|picture|photo(graph)?|video|clip|frame|scene)( (shows|depicts|displays|features|"
    r"portrays|captures|presents|contains|illustrates|is of)|,? (we|you) (can )?see|,? there (is|are)(?= ))[\s:,]+",
    re.I,
)


def tidy(text: str | None, max_chars: int | None = None) -> str | None:
    """`text` on one line without control characters, cut at the last word that fits; null when nothing is left."""
    line = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text or "").strip()
    if max_chars is not None and len(line) > max_chars:
        # One character more, so that a word that ends exactly at the limit stays.
        line = line[: max_chars + 1].rpartition(" ")[0] or line[:max_chars]
    return line or None


def inputs_id(read: str | None) -> str | None:
    """Digest of the captions to put together, by which a row knows whether they are still those."""
    return None if read is None else content_id([read.encode()])[:16]


def without_opening(text: str) -> str:
    """The caption without `The image shows` and the like in front."""
    rest = _OPENING.sub("", text, count=1)
    return text if not rest or rest == text else rest[0].upper() + rest[1:]
