"""Digests by which damage is known: of a folder's files, in `checksums.json` beside them; of a JSON document, in it."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tokenmill.storage import uris
from tokenmill.storage.errors import DamagedError
from tokenmill.storage.identity import content_id

NAME = "checksums.json"
_DIGEST = "digest"


def write_checksums(folder: Path) -> None:
    """Write that document for the files that stand in a local folder now."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != NAME]
    found = {str(path.relative_to(folder)): checksum(str(path)) for path in files}
    (folder / NAME).write_text(json.dumps(found, indent=1, sort_keys=True))


def checksum(uri: str) -> dict[str, Any]:
    """Size and digest of one file, as that document has them. Every byte is read."""
    sizes: list[int] = []

    def counted() -> Iterator[bytes]:
        for chunk in uris.read_chunks(uri):
            sizes.append(len(chunk))
            yield chunk

    return {"blake2b": content_id(counted()), "size_bytes": sum(sizes)}


def damaged_file(uri: str) -> str | None:
    """The first file of the folder at `uri` that is not as it was written; null when all are, or when an older release
    wrote the folder. Every byte is read.
    """
    place = uris.join(uri, NAME)
    if not uris.exists(place):
        return None
    try:
        for name, known in uris.read_json(place).items():
            file = uris.join(uri, *name.split("/"))
            chunks = uris.read_chunks(file) if uris.exists(file) else []
            if content_id(chunks) != known["blake2b"]:
                return file
    except (DamagedError, AttributeError, KeyError, TypeError):
        return place
    return None


def check_zip(file: BinaryIO) -> None:
    """Raises ValueError where a file that torch wrote, a zip, holds other bytes than its own checksums say; torch.load
    looks at none. Leaves the file at its beginning.
    """
    broken = zipfile.ZipFile(file).testzip()
    if broken is not None:
        raise ValueError(f"other bytes than were written in {broken}")
    file.seek(0)


def signed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with its digest in it; one that it had is replaced."""
    rest = {name: value for name, value in document.items() if name != _DIGEST}
    return rest | {_DIGEST: content_id([json.dumps(rest, sort_keys=True).encode()])}


def is_as_signed(document: dict[str, Any]) -> bool:
    """False for a document that is another than was signed; true for one of an older release, which has no digest."""
    return _DIGEST not in document or signed(document) == document
