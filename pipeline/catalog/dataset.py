"""A catalog as others read it: Arrow tables, Arrow datasets, Parquet files, versions. Writes nothing."""

from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from tokenmill.pipeline.catalog import versions
from tokenmill.pipeline.catalog.shard_files import SCHEMAS
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError, Table


class Dataset:
    """The tables of one root at one version (default: the newest at this moment), to be read.

    Raises CatalogError where there is no catalog, and for a version that is not there.
    """

    tables = tuple(SCHEMAS)  # sources, media, duplicates, captions, tokens

    def __init__(self, root: str, version: int | None = None):
        self.catalog = Catalog(root)
        if not self.catalog.exists():
            raise CatalogError(f"{self.catalog.root}: no catalog there yet; run `tokenmill run CONFIG` first")
        if version is not None:
            self.catalog = Catalog(root, version)
        self.catalog.read_absent_as_empty()
        for table in self.catalog:  # now, so that what a run commits later is not read from some tables and not others
            _ = table.is_new or table.delta

    def __repr__(self) -> str:
        return f"Dataset({self.root!r}, version={self.version})"

    @property
    def root(self) -> str:
        """The folder or s3:// prefix, absolute."""
        return self.catalog.root

    @property
    def version(self) -> int:
        """The version that is read, as `tokenmill log` numbers them."""
        return self.catalog.tokens.version

    def at(self, version: int) -> "Dataset":
        """The same root at another version."""
        return Dataset(self.root, version)

    def _table(self, name: str) -> Table:
        if name not in self.tables:
            raise CatalogError(f"{name!r} is no table; they are {', '.join(self.tables)}")
        return getattr(self.catalog, name)

    def table(self, name: str, columns: list[str] | None = None, where: pc.Expression | None = None) -> pa.Table:
        """Rows of one table, read into memory; only `columns`, only rows for which `where` holds."""
        return self._table(name).scan(columns, where)

    def arrow_dataset(self, name: str) -> pads.Dataset:
        """One table, unread: DuckDB, polars (`scan_pyarrow_dataset`) and Arrow read from it what a query needs."""
        return self._table(name).arrow_dataset()

    def files(self, name: str) -> list[str]:
        """URIs of the Parquet files of one table, for readers of files such as Hugging Face's `datasets`."""
        return self._table(name).files()

    def versions(self) -> list[dict[str, Any]]:
        """Runs that changed a table, oldest first: `version` of the dataset after it, `run_id`, `time`, `command` (null
        for a run that was killed), `rows` added and removed by table, and `what` besides its phases it did.
        """
        found = versions.runs(self.catalog)
        return [run | {"time": datetime.fromtimestamp(run["time_ms"] / 1000).astimezone()} for run in found]

    def difference(self, since: int) -> dict[str, list[str]]:
        """Ids of media by what changed since that version: `added`, `removed`, `recaptioned`, `retokenized`."""
        return versions.difference(self.at(since).catalog, self.catalog)
