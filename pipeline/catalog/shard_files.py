"""Rows of a table -> a new Parquet file in the table's folder: its name, its schema; written, not yet committed."""

import uuid
from dataclasses import dataclass

import pyarrow as pa

from tokenmill import storage
from tokenmill.stages.select.duplicates import DUPLICATES
from tokenmill.stages.table.columns import CAPTIONS, MEDIA, SOURCES
from tokenmill.tokenizer.shards import TOKENS, write_parquet

SCHEMAS = {"sources": SOURCES, "media": MEDIA, "duplicates": DUPLICATES, "captions": CAPTIONS, "tokens": TOKENS}


@dataclass(frozen=True)
class Shard:
    """One Parquet file under a table's folder, written but not yet committed."""

    name: str
    size_bytes: int
    num_rows: int


def write_shard(root: str, table: str, rows: pa.Table) -> Shard:
    """Write rows of `table` as one new Parquet file under `root`; commits nothing. Runs in any process."""
    rows = rows.select(SCHEMAS[table].names).cast(SCHEMAS[table])
    name = f"part-{uuid.uuid4().hex}.parquet"
    size = write_parquet(rows, storage.join(root, table, name))
    return Shard(name, size, rows.num_rows)
