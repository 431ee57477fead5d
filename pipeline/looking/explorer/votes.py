"""What people choose, a line of JSON each, below ROOT/votes: what rules, captions and `train.preferences` can use.

media.jsonl      {"media_id": ..., "vote": "keep" | "reject", "time": ...}
captions.jsonl   {"media_id": ..., "better": captioner, "than": [captioners], "time": ...}
"""

import json
import threading
from datetime import UTC, datetime
from typing import Any

from tokenmill import storage

_LOCK = threading.Lock()


def vote(root: str, given: Any, known: set[str]) -> str:
    """Keep a vote, and say which file has it. `known`: the captioners of the medium. Raises ValueError for what is no
    vote.
    """
    if not isinstance(given, dict) or not isinstance(given.get("media_id"), str):
        raise ValueError("no vote: media_id is missing")
    line = {"media_id": given["media_id"]}
    if given.get("vote") in ("keep", "reject"):
        name, line = "media.jsonl", line | {"vote": given["vote"]}
    elif given.get("better") in known:
        name, line = "captions.jsonl", line | {"better": given["better"], "than": sorted(known - {given["better"]})}
    else:
        raise ValueError("no vote: give vote keep or reject, or better, one of its captioners")
    line["time"] = datetime.now(UTC).isoformat(timespec="seconds")
    uri = storage.join(root, "votes", name)
    with _LOCK:
        before = storage.read_bytes(uri) if storage.exists(uri) else b""
        storage.write_bytes(uri, before + json.dumps(line).encode() + b"\n")
    return uri


def votes(root: str) -> dict[str, str]:
    """The newest vote on each medium, keep or reject."""
    uri = storage.join(root, "votes", "media.jsonl")
    lines = storage.read_bytes(uri).splitlines() if storage.exists(uri) else []
    return {row["media_id"]: row["vote"] for row in map(json.loads, lines)}
