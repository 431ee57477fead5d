"""What the sources hold now: one row per object, with the text or the etag of its caption.

Listing reads names, sizes and etags only (locally: mtime and size). Captions come from a `.txt` of the same stem
beside a file, or from a `captions.jsonl` (`file`, and `caption` or a list `captions`) in the same folder or above it;
the sidecar wins. Files that serve as captions and hidden files are no media; they are counted, everything else becomes
a row.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
from botocore.exceptions import BotoCoreError, ClientError

from pipeline.config import ConfigError, Source
from tokenizer import object_store, storage
from tokenizer.identity import fingerprint

CAPTIONS_NAME = "captions.jsonl"
_SIDECAR_READERS = 16

LISTING = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("caption_uri", pa.string()),  # the sidecar
        pa.field("caption", pa.string()),  # the text, when it stands in a captions.jsonl
        pa.field("caption_etag", pa.string()),  # changes with the caption; null = none
    ]
)


class _Object(NamedTuple):
    uri: str
    etag: str
    size_bytes: int


@dataclass
class Listing:
    """Objects in all sources, sorted by uri, and how many names were not media."""

    rows: pa.Table
    ignored: Counter[str] = field(default_factory=Counter)


def check_sources(sources: list[Source]) -> None:
    """Open every source and look at its first object. Raises ConfigError as `list_sources` does, in a moment."""
    for number, source in enumerate(sources):
        with _named(number, source):
            uri = storage.absolute(source.uri)
            if storage.is_remote(uri):
                object_store.check(uri)
            next(_list(uri), None)


@contextmanager
def _named(number: int, source: Source) -> Iterator[None]:
    try:
        yield
    except object_store.StoreError as error:
        raise ConfigError(f"sources.{number}.uri: {error}") from None
    except (ClientError, BotoCoreError) as error:
        raise ConfigError(f"sources.{number}.uri: {object_store.explained(source.uri, error)}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"sources.{number}.uri: {source.uri}: {error}; check the address and your permissions"
        ) from None


def list_sources(sources: list[Source]) -> Listing:
    """List every source. Raises ConfigError for a source that is not there or cannot be read."""
    found: dict[str, dict[str, object]] = {}
    ignored: Counter[str] = Counter()
    for number, source in enumerate(sources):
        with _named(number, source):
            rows = list(_rows(list(_list(storage.absolute(source.uri))), source, ignored))
        for row in rows:
            found.setdefault(str(row["uri"]), row)
    ordered = [found[uri] for uri in sorted(found)]
    return Listing(pa.Table.from_pylist(ordered, schema=LISTING), ignored)


def _list(uri: str) -> Iterator[_Object]:
    return _list_s3(uri) if storage.is_remote(uri) else _list_local(uri)


def _list_local(folder: str) -> Iterator[_Object]:
    if os.path.isfile(folder):
        raise NotADirectoryError("this is a file; give the folder that holds it")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if not entry.name.startswith("."):
                    yield from _list_local(entry.path)
            else:
                state = entry.stat()
                yield _Object(entry.path, f"{state.st_mtime_ns}-{state.st_size}", state.st_size)


def _list_s3(uri: str) -> Iterator[_Object]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    pages = (
        object_store.client()
        .get_paginator("list_objects_v2")
        .paginate(Bucket=bucket, Prefix=f"{prefix}/" if prefix else "")
    )
    empty = True
    for page in pages:
        for item in page.get("Contents", []):
            empty = False
            if not item["Key"].endswith("/"):
                yield _Object(f"s3://{bucket}/{item['Key']}", item["ETag"].strip('"'), item["Size"])
    if empty:
        raise FileNotFoundError("nothing under this prefix")


def _rows(objects: list[_Object], source: Source, ignored: Counter[str]) -> Iterator[dict[str, object]]:
    texts = _captions_by_uri(objects, source)
    stems = {_stem(o.uri) for o in objects if not o.uri.endswith(".txt")}
    sidecars = {_stem(o.uri): o for o in objects if o.uri.endswith(".txt") and _stem(o.uri) in stems}
    for item in objects:
        name = item.uri.rsplit("/", 1)[1]
        if name.startswith("."):
            ignored["hidden file"] += 1
        elif name == CAPTIONS_NAME or (item.uri.endswith(".txt") and _stem(item.uri) in sidecars):
            ignored["caption file"] += 1
        else:
            sidecar = sidecars.get(_stem(item.uri))
            text = None if sidecar else texts.get(item.uri)
            yield {
                "uri": item.uri,
                "etag": item.etag,
                "size_bytes": item.size_bytes,
                "caption_uri": sidecar.uri if sidecar else None,
                "caption": text,
                "caption_etag": sidecar.etag if sidecar else (fingerprint(text) if text is not None else None),
            }


def _stem(uri: str) -> str:
    folder, _, name = uri.rpartition("/")
    return f"{folder}/{name.rsplit('.', 1)[0]}"


def _captions_by_uri(objects: list[_Object], source: Source) -> dict[str, str]:
    files = [item.uri for item in objects if item.uri.rsplit("/", 1)[1] == CAPTIONS_NAME]
    if source.captions:
        files.insert(0, storage.absolute(source.captions))
    # The deepest file wins: it is the nearest to the media.
    found: dict[str, str] = {}
    for file in sorted(files, key=lambda uri: uri.count("/")):
        folder = file.rsplit("/", 1)[0]
        for number, line in enumerate(storage.read_bytes(file).decode().splitlines(), start=1):
            if line.strip():
                name, caption = _caption_line(file, number, line)
                if caption is not None:
                    found[storage.join(folder, name)] = caption
    return found


def _caption_line(file: str, number: int, line: str) -> tuple[str, str | None]:
    try:
        document = json.loads(line)
        captions = document.get("captions") or [document.get("caption")]
        return str(document["file"]), None if captions[0] is None else str(captions[0])
    except (ValueError, KeyError, AttributeError, TypeError, IndexError):
        raise ValueError(
            f'{file}, line {number}: expected {{"file": ..., "caption": ...}} or a list "captions"; correct the line'
        ) from None


def with_captions(rows: pa.Table) -> pa.Table:
    """Rows of a listing as (uri, size_bytes, source_caption), the sidecars read."""

    def text(row: dict[str, str | None]) -> str | None:
        if row["caption_uri"] is None:
            return row["caption"]
        return storage.read_bytes(row["caption_uri"]).decode(errors="replace")

    with ThreadPoolExecutor(_SIDECAR_READERS) as readers:
        texts = list(readers.map(text, rows.select(["caption_uri", "caption"]).to_pylist()))
    return rows.select(["uri", "size_bytes"]).append_column("source_caption", pa.array(texts, pa.string()))
