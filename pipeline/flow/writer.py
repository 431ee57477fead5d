"""Finished blocks -> Parquet shards of one table, in an actor on Ray or in the driver. Imports little: an actor starts
in the time of its imports.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokenmill import storage
from tokenmill.pipeline.catalog.shard_files import Shard, write_shard
from tokenmill.stages.table.columns import KNOWN

NUM_CPUS = 0.2  # that an actor reserves


class ShardWriter:
    """Writes shards of one table; commits nothing."""

    def __init__(self, root: str, table: str, constants: Mapping[str, str], keys: Sequence[str]):
        self._root, self._table, self._constants, self._keys = root, table, constants, list(keys)
        self.limit_s: float | None = None

    def verdicts(self, *blocks: pa.Table) -> dict[str | None, int]:
        """How many rows of finished blocks were kept (null), and rejected for each reason."""
        counts: Counter[str | None] = Counter()
        for reasons in (block["reject_reason"] for block in blocks if "reject_reason" in block.schema.names):
            counts.update({item["values"]: item["counts"] for item in pc.value_counts(reasons).to_pylist()})
        del counts[KNOWN]
        return dict(counts)

    def write(self, *blocks: pa.Table) -> tuple[Shard, pa.Table]:
        """Blocks -> one shard with the constant columns added, and the key columns of its rows."""
        rows = pa.concat_tables(blocks, promote_options="permissive")
        for name, value in self._constants.items():
            rows = rows.append_column(name, pa.array([value] * rows.num_rows, pa.string()))
        return write_shard(self._root, self._table, rows), rows.select(self._keys)

    def rewrite(self, shard: Shard, keep: pa.BooleanArray) -> Shard:
        """The shard with only the rows to keep, as a new file. The old one stays for the caller to delete: this call is
        made again when the process dies, and must find it.
        """
        uri = storage.join(self._root, self._table, shard.name)
        rows = pq.read_table(pa.BufferReader(storage.read_bytes(uri))).filter(keep)
        return write_shard(self._root, self._table, rows)
