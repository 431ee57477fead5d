"""Votes of people on media and captions: lines of JSON, as the explorer writes them.

    {"media_id": ..., "vote": "keep" | "reject"}      on a medium
    {"media_id": ..., "better": captioner}            on its captions

Other keys are for people. Of two on a medium the later line counts.
"""

import json
from collections.abc import Callable
from typing import Any

from tokenmill import storage
from tokenmill.storage.errors import UserError

KEEP, REJECT = "keep", "reject"


def media_votes(uri: str | None) -> dict[str, str]:
    """`keep` or `reject` by media_id; null: none. Raises UserError for no file, or lines that are no votes."""
    return _read(uri, "vote", lambda value: value in (KEEP, REJECT))


def caption_votes(uri: str | None) -> dict[str, str]:
    """The captioner that wrote the best caption, by media_id. Raises UserError as `media_votes` does."""
    return _read(uri, "better", lambda value: isinstance(value, str))


def _read(uri: str | None, key: str, is_vote: Callable[[Any], bool]) -> dict[str, str]:
    if uri is None:
        return {}
    uri = storage.absolute(uri)
    if not storage.exists(uri):
        raise UserError(f"{uri}: no votes there; `tokenmill explore CONFIG` keeps them below ROOT/votes")
    found: dict[str, str] = {}
    for number, line in enumerate(storage.read_bytes(uri).splitlines(), 1):
        if not line.strip():
            continue
        try:
            vote = json.loads(line)
            media_id, value = vote["media_id"], vote[key]
        except (ValueError, TypeError, KeyError):
            media_id = value = None
        if not isinstance(media_id, str) or not is_vote(value):
            raise UserError(f'{uri}: line {number} is no vote with "media_id" and "{key}"; mend it or take it out')
        found[media_id] = value
    return found
