"""The tables of a catalog at one version, asked in SQL by DuckDB, which reads of each file the columns that it needs.

sources, media, duplicates, captions, tokens   as docs/tables.md says
judged    media with `verdict`: a reject_reason, near or semantic where another medium stands for it, or kept;
          and `duplicate_of`
"""

import threading
from typing import Any

import pyarrow as pa

from tokenmill.pipeline.catalog import sql
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.stages.select.duplicates import KEPT


class Tables:
    """Any thread may ask. `memory_mb`: of DuckDB; what needs more is spilled.

    Raises CatalogError where there is no catalog.
    """

    def __init__(self, catalog: Catalog, memory_mb: int = sql.MEMORY_MB):
        if not catalog.exists():
            raise CatalogError(f"{catalog.root}: no catalog there yet; run `tokenmill run CONFIG` first")
        self.catalog = catalog
        catalog.read_absent_as_empty()
        self._database = sql.connect(memory_mb)
        self._lock = threading.Lock()
        for table in catalog:
            sql.let_table(self._database, table)
        self._database.execute(
            f"""create view judged as
            select m.*, coalesce(m.reject_reason, d.method, '{KEPT}') as verdict, d.duplicate_of
            from media m left join (select * from duplicates where method <> '{KEPT}') d using (media_id)"""
        )

    def add(self, name: str, rows: pa.Table) -> None:
        """Let `name` be these rows in what is asked."""
        with self._lock:
            self._database.register(name, rows)

    def arrow(self, sql: str, *values: Any) -> pa.Table:
        """The rows that `sql` selects, in which each ? is a value."""
        with self._lock:  # what is registered belongs to one connection, which takes a query at a time
            return self._database.sql(sql, params=list(values)).to_arrow_table()

    def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """The same as dicts."""
        return self.arrow(sql, *values).to_pylist()

    def value(self, sql: str, *values: Any) -> Any:
        """The one value that `sql` selects."""
        (row,) = self.rows(sql, *values)
        (value,) = row.values()
        return value
