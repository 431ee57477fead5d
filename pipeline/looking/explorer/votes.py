"""What people choose, a line of JSON each, below ROOT/votes: what rules, captions and `train.preferences` can use.

media.jsonl      {"media_id": ..., "vote": "keep" | "reject", "time": ...}           curate.decide.votes
captions.jsonl   {"media_id": ..., "better": captioner, "than": [captioners], ...}   caption.votes
samples.jsonl    {"chosen": sample_id, "rejected": sample_id, "by": who, ...}        train.preferences.votes
"""

import json
import threading
from datetime import UTC, datetime
from typing import Any

from tokenmill import storage
from tokenmill.stages.select.votes import KEEP, REJECT, media_votes

_LOCK = threading.Lock()


def uri_of(root: str, of: str) -> str:
    """The file of votes on `media`, `captions` or `samples`."""
    return storage.join(root, "votes", f"{of}.jsonl")


def vote(root: str, given: dict[str, Any], known: set[str]) -> str:
    """Keep a vote on a medium or its captions, and say which file has it. `known`: the captioners of the medium. Raises
    ValueError for what is no vote.
    """
    line = {"media_id": given["media_id"]}
    if given.get("vote") in (KEEP, REJECT):
        return keep(root, "media", line | {"vote": given["vote"]})
    if given.get("better") in known:
        return keep(root, "captions", line | {"better": given["better"], "than": sorted(known - {given["better"]})})
    raise ValueError("no vote: give vote keep or reject, or better, one of its captioners")


def keep(root: str, of: str, line: dict[str, Any]) -> str:
    """Add a line with the time; returns the file."""
    uri, line = uri_of(root, of), line | {"time": datetime.now(UTC).isoformat(timespec="seconds")}
    with _LOCK:
        before = storage.read_bytes(uri) if storage.exists(uri) else b""
        storage.write_bytes(uri, before + json.dumps(line).encode() + b"\n")
    return uri


def votes(root: str) -> dict[str, str]:
    """The newest vote on each medium, keep or reject."""
    uri = uri_of(root, "media")
    return media_votes(uri) if storage.exists(uri) else {}
