"""Rows that may be many: held in memory while they are few, then in a scratch file that goes with them."""

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokenmill.pipeline.catalog.scans import shard_batches
from tokenmill.storage import scratch

IN_MEMORY_ROWS = 250_000
_GROUP_ROWS = 50_000


class Spool:
    """Rows of `schema`, in no order to rely on. Written once, then read."""

    def __init__(self, schema: pa.Schema, *blocks: pa.Table):
        self.schema, self.num_rows = schema, 0
        self._blocks: list[pa.Table] = []
        self._path: str | None = None
        self._writer: pq.ParquetWriter | None = None
        for block in blocks:
            self.add(block)

    def add(self, rows: pa.Table) -> None:
        """Some more."""
        self.num_rows += rows.num_rows
        if rows.num_rows:
            self._blocks.append(rows)
        if sum(block.num_rows for block in self._blocks) >= (IN_MEMORY_ROWS if self._writer is None else _GROUP_ROWS):
            self._write()

    def _write(self) -> None:
        if self._writer is None:
            handle, self._path = tempfile.mkstemp(prefix="tokenmill-rows-", suffix=".parquet", dir=scratch.folder())
            os.close(handle)
            weakref.finalize(self, os.unlink, self._path)
            self._writer = pq.ParquetWriter(self._path, self.schema, compression="zstd", compression_level=1)
        for block in self._blocks:
            self._writer.write_table(block, row_group_size=_GROUP_ROWS)
        self._blocks = []

    def source(self) -> pa.Table | list[str]:
        """All rows, for SQL: a table or the path of a Parquet file; nothing is added after."""
        if self._writer is None or self._path is None:
            return pa.concat_tables([self.schema.empty_table(), *self._blocks])
        self._write()
        self._writer.close()
        return [self._path]

    def read(self, where: pc.Expression | None = None) -> pa.Table:
        """Those for which `where` holds, in memory."""
        blocks = (block if where is None else block.filter(where) for block in self.batches())
        return pa.concat_tables([self.schema.empty_table(), *blocks])

    def batches(self) -> Iterator[pa.Table]:
        """All rows, some at a time."""
        rows = self.source()
        if isinstance(rows, pa.Table):
            yield rows
            return
        for batch in shard_batches(rows[0], self.schema.names, _GROUP_ROWS):
            yield pa.Table.from_batches([batch], self.schema)

    def filtered(self, only: Callable[[pa.Table], pa.Table]) -> "Spool":
        """What `only` leaves of each block."""
        return Spool(self.schema, *(only(block) for block in self.batches()))
