"""Ray tasks that turn finished blocks into a Parquet shard. Imports little: workers start in the time of their
imports.
"""

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from pipeline.catalog import Shard, write_shard
from tokenizer import storage

NUM_CPUS = 0.2


@ray.remote(num_cpus=NUM_CPUS)
def write(
    root: str, table: str, constants: dict[str, str], keys: list[str], *blocks: pa.Table
) -> tuple[Shard, pa.Table]:
    """Blocks -> one shard of `table` with the constant columns added, and the key columns of its rows."""
    rows = pa.concat_tables(blocks, promote_options="permissive")
    for name, value in constants.items():
        rows = rows.append_column(name, pa.array([value] * rows.num_rows, pa.string()))
    return write_shard(root, table, rows), rows.select(keys)


@ray.remote(num_cpus=NUM_CPUS)
def rewrite(root: str, table: str, shard: Shard, keep: pa.BooleanArray) -> Shard:
    """The shard with only the rows to keep; the old file, never committed, is deleted."""
    filesystem, path = storage.filesystem(storage.join(root, table, shard.name))
    with filesystem.open_input_file(path) as file:
        rows = pq.read_table(file).filter(keep)
    written = write_shard(root, table, rows)
    filesystem.delete_file(path)
    return written
