"""Where media of a catalog were exported to, in `<root>/exports.json`, so that a takedown finds them."""

from tokenmill import storage

EXPORTS = "exports.json"


def remember_export(root: str, kind: str, uri: str) -> None:
    """Record where media of this catalog were exported to, so that `forget` finds them."""
    path = storage.join(root, EXPORTS)
    known = storage.read_json(path) if storage.exists(path) else []
    entry = {"kind": kind, "uri": uri}
    if entry not in known:
        storage.write_json(path, [*known, entry])


def exports(root: str) -> list[dict[str, str]]:
    """The recorded exports: `kind` (image, video, webdataset) and `uri`."""
    path = storage.join(root, EXPORTS)
    return storage.read_json(path) if storage.exists(path) else []
