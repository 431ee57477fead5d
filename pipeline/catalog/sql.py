"""Tables asked in SQL by DuckDB, in bounded memory: what needs more goes to a scratch folder and comes back.

Whatever compares whole tables, of which the answer is small, is asked here.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from tokenmill import storage
from tokenmill.pipeline.catalog.shard_files import damaged_file
from tokenmill.pipeline.catalog.tables import Catalog, Table
from tokenmill.storage import scratch
from tokenmill.storage.errors import DamagedError

MEMORY_MB = 512
_BATCH_ROWS = 50_000

Source: TypeAlias = pa.Table | pads.Dataset | list[str]  # the last: Parquet files of this machine, one at least


def connect(memory_mb: int = MEMORY_MB) -> duckdb.DuckDBPyConnection:
    """An empty database of this process."""
    return duckdb.connect(
        config={
            "memory_limit": f"{memory_mb}MB",
            "temp_directory": scratch.folder() or tempfile.gettempdir(),
            "autoinstall_known_extensions": False,
            "preserve_insertion_order": False,
        }
    )


def let(database: duckdb.DuckDBPyConnection, name: str, source: Source) -> None:
    """Let `name` be these rows. Files are read by DuckDB itself, in a part of the memory that a scan by Arrow takes."""
    if not isinstance(source, list):
        database.register(name, source)
        return
    quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in source)
    database.execute(f"create or replace view {name} as select * from read_parquet([{quoted}], union_by_name=true)")


def let_table(database: duckdb.DuckDBPyConnection, table: Table) -> None:
    """Let the name of a table of a catalog be its rows, with null in columns that its files do not have."""
    files = [] if table.is_new else table.files()
    if not files or storage.is_remote(table.uri):
        let(database, table.name, table.arrow_dataset() if files else table.schema.empty_table())
        return
    let(database, f"{table.name}_files", [storage.filesystem(file)[1] for file in files])
    database.register(f"{table.name}_columns", table.schema.empty_table())
    every = f"select * from {table.name}_columns union all by name select * from {table.name}_files"
    database.execute(f"create or replace view {table.name} as {every}")


def ask(sql: str, values: Mapping[str, Any] | None = None, **tables: Source) -> pa.Table:
    """The rows that `sql` selects from `tables`; `values` stand for $NAME in it."""
    with connect() as database:
        for name, table in tables.items():
            let(database, name, table)
        return database.sql(sql, params=dict(values or {})).to_arrow_table()


def ask_catalog(catalog: Catalog, sql: str, values: Mapping[str, Any] | None = None, **more: Source) -> pa.Table:
    """The same of the tables of a catalog that `sql` names, and of `more`. Raises DamagedError that names the file of a
    table which cannot be read.
    """
    read = [table for table in catalog if re.search(rf"\b{table.name}\b", sql)]
    with connect() as database:
        for name, source in more.items():
            let(database, name, source)
        try:
            for table in read:
                let_table(database, table)
            return database.sql(sql, params=dict(values or {})).to_arrow_table()
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            for table in read:
                if at := damaged_file(table.files()):
                    raise DamagedError(at) from error
            raise


def batches(sql: str, values: Mapping[str, Any] | None = None, **tables: Source) -> Iterator[pa.Table]:
    """Rows as `ask` gives, some at a time."""
    with connect() as database:
        for name, table in tables.items():
            let(database, name, table)
        rows = database.sql(sql, params=dict(values or {}))
        for batch in rows.to_arrow_reader(_BATCH_ROWS):  # type: ignore[union-attr]
            yield pa.Table.from_batches([batch])
