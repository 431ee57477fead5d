"""A commit of a table's log says of itself what it holds, so that a damaged one is known: its note has a `seal`.

The seal is a digest of the rest of the note, of the files that come and go with their sizes and rows, and of the
columns. Commits of older releases, and those that delta-rs makes by itself, have none.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping

import pyarrow as pa
from deltalake import Schema
from deltalake.transaction import AddAction, RemoveAction

SEAL = "seal"


def sealed(note: Mapping[str, str], entries: Iterable[str]) -> dict[str, str]:
    """The note with its seal, which names the keys that it covers: delta-rs adds some of its own."""
    return {**note, SEAL: " ".join([_digest(note, entries), *sorted(note)])}


def is_intact(note: Mapping[str, str], entries: Iterable[str]) -> bool:
    """Whether a note's seal, if it has one, is that of its commit."""
    if SEAL not in note:
        return True
    digest, *keys = note[SEAL].split()
    return set(keys) <= note.keys() and digest == _digest({key: note[key] for key in keys}, entries)


def entries_of(actions: Iterable[AddAction | RemoveAction]) -> list[str]:
    """What a seal covers of the actions of a commit."""
    return [
        added(action.path, action.size, action.stats) if isinstance(action, AddAction) else removed(action.path)
        for action in actions
    ]


def entries_of_schema(schema: pa.Schema) -> list[str]:
    """What a seal covers of a table's creation; `schema` as the log declares it."""
    return [column(field) for field in json.loads(Schema.from_arrow(schema).to_json())["fields"]]


def added(path: str, size: int, stats: str) -> str:
    return f"+{path} {size} {stats}"


def removed(path: str) -> str:
    return f"-{path}"


def column(field: Mapping[str, object]) -> str:
    """`field` as in the log's schema."""
    return json.dumps(field, sort_keys=True)


def _digest(note: Mapping[str, str], entries: Iterable[str]) -> str:
    text = json.dumps([dict(note), sorted(entries)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
