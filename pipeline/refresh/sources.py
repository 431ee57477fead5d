"""What the sources hold now: one row per object, with the text or the etag of its caption.

Listing reads names, sizes and etags only (locally: mtime and size). Captions come from a `.txt` of the same stem
beside a file, or from a `captions.jsonl` (`file`, and `caption` or a list `captions`) in the same folder or above it;
the sidecar wins. Files that serve as captions and hidden files are no media; they are counted, everything else becomes
a row. A container is one row too: what is in it is read by the workers (stages/read/containers.py).
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
import pyarrow.compute as pc
from botocore.exceptions import BotoCoreError, ClientError

from tokenmill import storage
from tokenmill.pipeline.config import CAPTIONS_NAME, ConfigError, Source
from tokenmill.stages.table.columns import UNPACK
from tokenmill.storage import object_store
from tokenmill.storage.identity import fingerprint_of

_SIDECAR_READERS = 16

LISTING = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("caption_uri", pa.string()),  # the sidecar
        pa.field("caption", pa.string()),  # the text, when it stands in a captions.jsonl
        pa.field("caption_etag", pa.string()),  # changes with the caption; null = none
        *(UNPACK.field(name) for name in ("container", "column", "caption_column")),
    ]
)

_EXTENSIONS = {
    "webdataset": (".tar", ".tar.gz", ".tgz"),  # the compressed are rejected by name, not passed over
    "parquet": (".parquet",),
    "urls": (".txt", ".csv", ".tsv", ".jsonl", ".parquet"),
    "text": (".jsonl", ".csv", ".tsv", ".parquet"),
}


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
            next(_list(uri, source.kind != "files"), None)


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
    found: list[pa.Table] = []
    ignored: Counter[str] = Counter()
    for number, source in enumerate(sources):
        with _named(number, source):
            objects = list(_list(storage.absolute(source.uri), source.kind != "files"))
            found.append((_files if source.kind == "files" else _containers)(objects, source, ignored))
    rows = pa.concat_tables(found).combine_chunks()
    if len(found) > 1:  # a file that stands in several sources belongs to the first
        first = pc.equal(pc.index_in(rows["uri"], value_set=rows["uri"].combine_chunks()), pa.array(range(len(rows))))
        rows = rows.filter(first)
    return Listing(rows.sort_by("uri"), ignored)


def _list(uri: str, may_be_file: bool) -> Iterator[_Object]:
    return _list_s3(uri, may_be_file) if storage.is_remote(uri) else _list_local(uri, may_be_file)


def _list_local(folder: str, may_be_file: bool) -> Iterator[_Object]:
    if os.path.isfile(folder):
        if not may_be_file:
            raise NotADirectoryError("this is a file; give the folder that holds it")
        yield _local(folder, os.stat(folder))
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if not entry.name.startswith("."):
                    yield from _list_local(entry.path, may_be_file)
            else:
                yield _local(entry.path, entry.stat())


def _local(path: str, state: os.stat_result) -> _Object:
    return _Object(path, f"{state.st_mtime_ns}-{state.st_size}", state.st_size)


def _list_s3(uri: str, may_be_file: bool) -> Iterator[_Object]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    is_file = may_be_file and "." in prefix.rpartition("/")[2]
    pages = (
        object_store.client()
        .get_paginator("list_objects_v2")
        .paginate(Bucket=bucket, Prefix=prefix if is_file else f"{prefix}/" if prefix else "")
    )
    empty = True
    for page in pages:
        for item in page.get("Contents", []):
            if is_file and item["Key"] != prefix and not item["Key"].startswith(f"{prefix}/"):
                continue
            empty = False
            if not item["Key"].endswith("/"):
                yield _Object(f"s3://{bucket}/{item['Key']}", item["ETag"].strip('"'), item["Size"])
    if empty:
        raise FileNotFoundError("nothing under this prefix")


def _containers(objects: list[_Object], source: Source, ignored: Counter[str]) -> pa.Table:
    endings = _EXTENSIONS[source.kind]
    mine = [item for item in objects if item.uri.lower().endswith(endings)]
    if not mine:
        raise FileNotFoundError(f"nothing there that ends in {', '.join(endings)}, as kind '{source.kind}' asks")
    if other := len(objects) - len(mine):
        ignored[f"no {source.kind} file"] += other
    # Another column is another content.
    columns = [source.column, source.caption_column]
    state = f"#{fingerprint_of(columns)}" if any(columns) else ""
    none = [None] * len(mine)
    return pa.table(
        [
            [item.uri for item in mine],
            [f"{item.etag}{state}" for item in mine],
            [item.size_bytes for item in mine],
            *(none, none, none),
            *([value] * len(mine) for value in (source.kind, *columns)),
        ],
        schema=LISTING,
    )


def _files(objects: list[_Object], source: Source, ignored: Counter[str]) -> pa.Table:
    texts = _captions_by_uri(objects, source)
    stems = {_stem(item.uri) for item in objects if not item.uri.endswith(".txt")}
    beside = {_stem(item.uri): item for item in objects if item.uri.endswith(".txt") and _stem(item.uri) in stems}
    rows: list[_Object] = []
    sidecars: list[_Object | None] = []
    for item in objects:
        name = item.uri.rsplit("/", 1)[1]
        if name.startswith("."):
            ignored["hidden file"] += 1
        elif name == CAPTIONS_NAME or (item.uri.endswith(".txt") and _stem(item.uri) in beside):
            ignored["caption file"] += 1
        else:
            rows.append(item)
            sidecars.append(beside.get(_stem(item.uri)))
    captions = [None if side else texts.get(item.uri) for item, side in zip(rows, sidecars, strict=True)]
    states = [
        side.etag if side else None if text is None else fingerprint_of(text)
        for side, text in zip(sidecars, captions, strict=True)
    ]
    none = [None] * len(rows)
    return pa.table(
        [
            [item.uri for item in rows],
            [item.etag for item in rows],
            [item.size_bytes for item in rows],
            [side.uri if side else None for side in sidecars],
            captions,
            states,
            *(none, none, none),
        ],
        schema=LISTING,
    )


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
    """Rows of a listing as (uri, size_bytes, source_caption) and what containers are, the sidecars read."""

    def text(row: dict[str, str | None]) -> str | None:
        if row["caption_uri"] is None:
            return row["caption"]
        return storage.read_bytes(row["caption_uri"]).decode(errors="replace")

    with ThreadPoolExecutor(_SIDECAR_READERS) as readers:
        texts = list(readers.map(text, rows.select(["caption_uri", "caption"]).to_pylist()))
    made = rows.select(["uri", "size_bytes"]).append_column("source_caption", pa.array(texts, pa.string()))
    for name in ("container", "column", "caption_column"):
        made = made.append_column(name, rows[name])
    return made
