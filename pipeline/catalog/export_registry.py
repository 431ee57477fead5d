"""Where media of a catalog were exported to, in `<root>/exports.json`, so that a takedown finds them."""

from typing import Any

from tokenmill import storage
from tokenmill.storage.errors import DamagedError

EXPORTS = "exports.json"


def remember_export(root: str, kind: str, uri: str) -> None:
    """Record where media of this catalog were exported to, so that `forget` finds them. Raises DamagedError."""
    known, entry = exports(root), {"kind": kind, "uri": uri}
    if entry not in known:
        storage.write_json(storage.join(root, EXPORTS), [*known, entry])


def exports(root: str) -> list[dict[str, str]]:
    """The recorded exports: `kind` (image, video, webdataset) and `uri`. Raises DamagedError."""
    path = storage.join(root, EXPORTS)
    known = storage.read_json(path) if storage.exists(path) else []
    if not is_intact(known):
        raise DamagedError(path)
    return known


def is_intact(document: Any) -> bool:
    """Whether a document looks like a list of exports."""
    return isinstance(document, list) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in ("kind", "uri"))
        for entry in document
    )
