"""Rows of a table -> a new Parquet file in the table's folder: its name, its schema; written, not yet committed.

A name ends in a digest of the file's bytes, so that a damaged file is known without a list of checksums:
`part-<32 digits>-<16 digits of BLAKE2b>.parquet`. Files of older releases have none.
"""

import hashlib
import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tokenmill import storage
from tokenmill.stages.select.duplicates import DUPLICATES
from tokenmill.stages.table.columns import CAPTIONS, MEDIA, SOURCES
from tokenmill.tokenizer.shards import TOKENS, parquet_of, put

SCHEMAS = {"sources": SOURCES, "media": MEDIA, "duplicates": DUPLICATES, "captions": CAPTIONS, "tokens": TOKENS}
_NAME = re.compile(r"part-[0-9a-f]{32}-([0-9a-f]{16})\.parquet")
_DIGEST_BYTES = 8


@dataclass(frozen=True)
class Shard:
    """One Parquet file under a table's folder, written but not yet committed."""

    name: str
    size_bytes: int
    num_rows: int


def write_shard(root: str, table: str, rows: pa.Table) -> Shard:
    """Write rows of `table` as one new Parquet file under `root`; commits nothing. Runs in any process."""
    rows = rows.select(SCHEMAS[table].names).cast(SCHEMAS[table])
    data = parquet_of(rows)
    digest = hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
    name = f"part-{uuid.uuid4().hex}-{digest}.parquet"
    put(storage.join(root, table, name), data)
    return Shard(name, data.size, rows.num_rows)


def has_digest(uri: str) -> bool:
    """False for a file that an older release wrote."""
    return _NAME.fullmatch(uri.rsplit("/", 1)[1]) is not None


def is_as_written(uri: str) -> bool:
    """Whether a file has the bytes that its name says; it is read for that. Raises OSError, StoreError."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for chunk in storage.read_chunks(uri):
        digest.update(chunk)
    found = _NAME.fullmatch(uri.rsplit("/", 1)[1])
    return found is not None and found[1] == digest.hexdigest()


def damaged_file(uris: Iterable[str]) -> str | None:
    """The first of these files that is gone or not as it was written; null when none is known to be."""
    return next((uri for uri in uris if not storage.exists(uri) or (has_digest(uri) and not is_as_written(uri))), None)


def put_together(files: list[dict[str, Any]], target_bytes: int) -> Iterator[list[dict[str, Any]]]:
    """Files (`size_bytes`) in groups that reach `target_bytes`, but for the last."""
    group: list[dict[str, Any]] = []
    size = 0
    for file in files:
        group.append(file)
        size += file["size_bytes"]
        if size >= target_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group
