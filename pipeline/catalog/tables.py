"""The catalog: five Delta tables under the config's `root`, each change one atomic table version.

Workers write Parquet shards; the driver commits them. A row is visible if and only if its shard was committed, so a
killed run leaves orphan files and nothing else. Changing rows is copy-on-write with our own shard writer (`edit`): the
files that hold such rows are written anew and old and new are exchanged in one commit, which keeps the codes'
encoding, and is atomic on S3 by conditional put (delta-rs, no lock service). The driver of a run is the only writer.

Delta has no unsigned types: `codes` is declared `array<integer>` in the log and stored as uint16 in the files; any
reader widens it. Sources: the Delta protocol's add and remove actions; ARCHITECTURE.md's tables.
"""

import json
import math
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from tokenmill import storage
from tokenmill.pipeline.catalog.log import copies, readable, seals
from tokenmill.pipeline.catalog.log.calls import asked
from tokenmill.pipeline.catalog.log.readable import delta_schema
from tokenmill.pipeline.catalog.scans import matches, shards
from tokenmill.pipeline.catalog.shard_files import SCHEMAS, Shard, damaged_file, put_together, write_shard
from tokenmill.storage.errors import DamagedError, UserError
from tokenmill.storage.failures import AGAIN, advice, words
from tokenmill.storage.object_store import delta_options

_MENDS_LOGS = "`tokenmill verify CONFIG --repair` mends a damaged log"
_MIN_SMALL_FILES, _COMMIT_ATTEMPTS = 16, 5
COMPACTED = "compacted"  # says the note of a version that holds the same rows in fewer files
_LOG_EVERY_COMMITS = 10  # checkpoint the Delta log so that opening a long-lived table stays one read


class CatalogError(UserError):
    """The catalog cannot be opened or written; the message says where and what to do."""


class Table:
    """One Delta table of the catalog."""

    def __init__(self, root: str, name: str, pinned: int | datetime | None = None):
        self.root, self.name = root, name
        self.uri = storage.join(root, name)
        self.schema = SCHEMAS[name]
        self.guard: Callable[[], None] | None = None  # called before each commit; raises where none may be made
        self.is_new = False  # true: not created yet, and reads as empty
        self._pinned = pinned
        self._delta: DeltaTable | None = None
        self._copied: int | None = None  # commits up to this version have a copy; null: not known

    @property
    def delta(self) -> DeltaTable:
        """The table at its newest known version, or at the pinned one.

        Raises CatalogError, also for a table of another release whose columns do not fit.
        """
        if self._delta is None:
            try:
                opened = self._open()
                if self._pinned is not None:
                    opened.load_as_version(self._pinned)
            except TableNotFoundError as error:
                raise CatalogError(f"{self.uri}: no table there; run `tokenmill run CONFIG` first") from error
            except (DeltaError, OSError) as error:
                raise self._failed("cannot be opened", error, f"check its address and AWS_*; {_MENDS_LOGS}") from error
            if reason := readable.misfit(opened.schema(), self.schema):
                raise CatalogError(f"{self.uri}: {reason}")
            self._delta = opened
        return self._delta

    def _failed(self, what: str, error: Exception, otherwise: str) -> CatalogError:
        return CatalogError(f"{self.uri}: {what}: {words(error)}; {advice(error, otherwise)}")

    def _open(self, version: int | None = None) -> DeltaTable:
        return asked(self.uri, lambda: DeltaTable(self.uri, version=version, storage_options=delta_options()))

    def exists(self) -> bool:
        """True when the table has been created."""
        try:
            return asked(self.uri, lambda: DeltaTable.is_deltatable(self.uri, storage_options=delta_options()))
        except (DeltaError, OSError) as error:
            raise self._failed("cannot be reached", error, "check the address and the AWS_* variables") from error

    def create(self) -> None:
        """Create the table, empty, unless it exists. Raises CatalogError, as `delta` does for one that exists."""
        if self.exists():
            _ = self.delta
            return
        try:
            if not storage.is_remote(self.uri):
                storage.filesystem(self.uri)[0].create_dir(self.uri, recursive=True)
            schema, options = delta_schema(self.schema), delta_options()
            note = CommitProperties(custom_metadata=seals.sealed({}, seals.entries_of_schema(schema)))
            create = partial(DeltaTable.create, self.uri, schema, mode="ignore", storage_options=options)
            asked(self.uri, lambda: create(commit_properties=note))
            self._copy_commits()
        except (DeltaError, OSError) as error:
            raise self._failed("cannot be created", error, "check the path and your permission to write") from error

    @property
    def version(self) -> int:
        """Number of the newest version, 0 for a new table."""
        return self.delta.version()

    def refresh(self) -> None:
        """See commits that another process made."""
        self._delta = None

    def files(self, version: int | None = None, must_exist: bool = True) -> list[str]:
        """URIs of the Parquet files of a version (default: the newest), in a stable order.

        Raises CatalogError for a past version of which `forget` or `vacuum` deleted a file, unless `must_exist` is
        false.
        """
        if self.is_new:
            return []
        delta = self.delta if version is None else self._open(version)
        names = sorted(uri.rsplit("/", 1)[1] for uri in delta.file_uris())
        if must_exist and (version is not None or self._pinned is not None):
            self._check_files(delta.version(), names)
        return [storage.join(self.uri, name) for name in names]

    def is_whole(self, version: int) -> bool:
        """False for a past version of which `forget` or `vacuum` deleted a file."""
        return not self._lost([uri.rsplit("/", 1)[1] for uri in self.files(version, must_exist=False)])

    def _lost(self, names: list[str]) -> set[str]:
        return set(names) - set(storage.list_names(self.uri))

    def _check_files(self, version: int, names: list[str]) -> None:
        lost = self._lost(names)
        if not lost:
            return
        newest = Table(self.root, self.name)
        reason = readable.lost(len(lost), len(names), newest.history(newest.version - version))
        raise CatalogError(f"{self.uri}: version {version} {reason}")

    def scan(
        self, columns: list[str] | None = None, where: pc.Expression | None = None, version: int | None = None
    ) -> pa.Table:
        """Rows of a version as one Arrow table, only the asked columns being read."""
        return self.read_files(self.files(version), columns, where)

    def read_files(
        self, files: list[str], columns: list[str] | None = None, where: pc.Expression | None = None
    ) -> pa.Table:
        """Rows of these data files. Raises DamagedError for one that cannot be read."""
        names = columns or self.schema.names
        if not files:
            return pa.schema([self.schema.field(name) for name in names]).empty_table()
        return self._read(files, where, names)

    def count(self, where: pc.Expression | None = None) -> int:
        """Number of rows, without reading more than the columns of `where`."""
        files = self.files()
        return self._count(files, where) if files else 0

    def _read(self, files: list[str], where: pc.Expression | None = None, names: list[str] | None = None) -> pa.Table:
        def read() -> pa.Table:
            rows = self._dataset(files).to_table(columns=names, filter=where)
            rows.validate(full=True)  # Arrow takes bytes that are no UTF-8 for text; 6 GB/s
            return rows

        return self._asked_of(files, read)

    def _count(self, files: list[str], where: pc.Expression | None) -> int:
        return self._asked_of(files, lambda: self._dataset(files).count_rows(filter=where))

    def _asked_of(self, files: list[str], call: Callable[[], Any]) -> Any:
        """What a call that reads `files` returns. Raises DamagedError that names the file that cannot be read."""
        try:
            return asked(self.uri, call)
        except (pa.ArrowException, OSError) as error:
            if storage.is_remote(self.uri) and not isinstance(error, pa.ArrowException | FileNotFoundError):
                raise  # the store's fault
            raise (DamagedError(at) if (at := damaged_file(files)) else DamagedError(self.uri, error)) from error

    def arrow_dataset(self) -> pads.Dataset:
        """The rows as an Arrow dataset, read when they are asked for."""
        return self._dataset(self.files())

    def _dataset(self, files: list[str]) -> pads.Dataset:
        return shards(files, self.schema)

    def append(self, rows: pa.Table, note: dict[str, Any]) -> None:
        """Write and commit `rows`; nothing for zero rows."""
        if rows.num_rows:
            self.commit([write_shard(self.root, self.name, rows)], [], note)

    def commit(self, added: list[Shard], removed: list[str], note: dict[str, Any], num_same: int = 0) -> None:
        """One version: files already written become visible, files named in `removed` vanish from it.

        `num_same` rows stand in both, and count in the note neither as added nor as removed.
        """
        if not added and not removed:
            return
        if self._pinned is not None:
            raise CatalogError(f"{self.uri}: version {self.version} is past and stays as it is; leave --version out")
        note = note | {
            "rows_added": sum(shard.num_rows for shard in added) - num_same,
            "rows_removed": self._num_rows(removed) - num_same,
        }
        now = int(time.time() * 1000)
        actions: list[AddAction | RemoveAction] = [
            AddAction(
                shard.name,
                shard.size_bytes,
                {},
                now,
                True,
                json.dumps({"numRecords": shard.num_rows}),  # ids are hashes: their extremes would skip no file
            )
            for shard in added
        ]
        actions += [RemoveAction(name, True, now, partition_values={}) for name in removed]
        self._write_version(actions, {key: str(value) for key, value in note.items()})
        self._delta = None
        self._copy_commits()
        if self.version and self.version % _LOG_EVERY_COMMITS == 0:
            asked(self.uri, self.delta.create_checkpoint)

    def _copy_commits(self) -> None:
        copies.copy_commits(self.uri, self._copied, self.version)
        self._copied = self.version

    def _write_version(self, actions: list[AddAction | RemoveAction], note: dict[str, str]) -> None:
        """Make `actions` the next version, once: a put whose answer was lost is looked for before it is sent again."""
        if self.guard:
            self.guard()
        self._add_columns(note)
        version, commit_id = self.version, uuid.uuid4().hex
        note = seals.sealed(note | {"commit_id": commit_id}, seals.entries_of(actions))
        properties = CommitProperties(custom_metadata=note, max_commit_retries=0)
        for attempt in range(_COMMIT_ATTEMPTS):
            try:
                self.delta.create_write_transaction(
                    actions, "append", delta_schema(self.schema), commit_properties=properties
                )
                return
            except (DeltaError, OSError) as error:
                self._delta = None
                num_new = self.version - version
                if num_new and self.history(num_new)[-1].get("commit_id") == commit_id:
                    return
                # A version of another writer's: what this one was made from is old.
                if num_new or attempt == _COMMIT_ATTEMPTS - 1 or not storage.is_remote(self.uri):
                    raise self._failed("commit failed", error, AGAIN) from error
                time.sleep(2.0**attempt)

    def _add_columns(self, note: dict[str, str]) -> None:
        """Give a table of an older release the columns that it lacks, in a version of their own."""
        if not readable.lacking(self.delta.schema(), self.schema):
            return

        def add() -> None:
            self._delta = None  # of two tries, the first may have succeeded
            if fields := readable.lacking(self.delta.schema(), self.schema):
                what = note | {"what": f"columns added: {', '.join(field.name for field in fields)}"}
                what |= {"rows_added": "0", "rows_removed": "0"}
                self.delta.alter.add_columns(fields, commit_properties=CommitProperties(custom_metadata=what))

        try:
            asked(self.uri, add)
        except (DeltaError, OSError) as error:
            raise self._failed("columns cannot be added", error, AGAIN) from error
        self._delta = None

    def _num_rows(self, names: list[str]) -> int:
        """Rows of the files of this version with these names."""
        if not names:
            return 0
        files = pa.table(self.delta.get_add_actions())
        return pc.sum(files.filter(pc.is_in(files["path"], value_set=pa.array(names)))["num_records"]).as_py() or 0

    def compact(self, target_bytes: int, note: dict[str, Any]) -> int:
        """Put files smaller than half of `target_bytes` together, in one version with the same rows; returns how many
        files became fewer. Fewer than `_MIN_SMALL_FILES` small files stay as they are.
        """
        files = pa.table(self.delta.get_add_actions()).select(["path", "size_bytes"]).sort_by("path").to_pylist()
        small = [file for file in files if file["size_bytes"] < target_bytes // 2]
        if len(small) < _MIN_SMALL_FILES:
            return 0
        added: list[Shard] = []
        for group in put_together(small, target_bytes):
            uris = [storage.join(self.uri, file["path"]) for file in group]
            added.append(write_shard(self.root, self.name, self._read(uris)))
        num_rows = sum(shard.num_rows for shard in added)
        self.commit(added, [file["path"] for file in small], note | {"what": COMPACTED}, num_rows)
        return len(small) - len(added)

    def edit(
        self,
        where: pc.Expression,
        change: Callable[[pa.Table], pa.Table] | None,
        note: dict[str, Any],
        append: pa.Table | None = None,
    ) -> int:
        """Change or drop the rows that match `where`, copy-on-write, in one version; returns how many matched.

        `change` maps the matching rows of a file to their replacement (same schema, any number of rows); None drops
        them. `append` adds rows in the same version. Files without a match are not touched.
        """
        added: list[Shard] = []
        removed: list[str] = []
        matched = num_same = 0
        files = self.files()
        for name, hits in self._asked_of(files, lambda: matches(self._dataset(files), where)):
            rows = self._read([storage.join(self.uri, name)])
            met, parts = rows.filter(hits), [rows.filter(pc.invert(hits))]
            matched, num_same = matched + met.num_rows, num_same + parts[0].num_rows
            if change is not None:
                parts.append(change(met).select(self.schema.names).cast(self.schema))
            kept = pa.concat_tables(parts)
            if kept.num_rows:
                added.append(write_shard(self.root, self.name, kept))
            removed.append(name)
        if append is not None and append.num_rows:
            added.append(write_shard(self.root, self.name, append))
        self.commit(added, removed, note, num_same)
        return matched

    def vacuum(self, hours: float, dry_run: bool, keep_versions: list[int]) -> tuple[int, int]:
        """Delete files that neither the versions of the last `hours` nor `keep_versions` need; returns files, bytes."""
        options: dict[str, Any] = {"enforce_retention_duration": False, "full": True}
        if keep_versions:
            options["keep_versions"] = keep_versions
        hours_up = math.ceil(hours)
        names = asked(self.uri, lambda: self.delta.vacuum(hours_up, dry_run=True, **options))
        filesystem, path = storage.filesystem(self.uri)
        sizes = [info.size or 0 for info in filesystem.get_file_info([storage.join(path, name) for name in names])]
        if names and not dry_run:
            asked(self.uri, lambda: self.delta.vacuum(hours_up, dry_run=False, **options))
            self._delta = None
            self._copy_commits()
            copies.drop_copies(self.uri)
        return len(names), sum(sizes)

    def history(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Versions, newest first, with the notes of their commits; at most `limit`. Raises CatalogError."""
        try:
            return asked(self.uri, lambda: self.delta.history(limit))
        except (DeltaError, OSError) as error:
            raise self._failed("its log cannot be read", error, _MENDS_LOGS) from error


class Catalog:
    """The five tables of one root; at `version` of `tokens`, the others as they were until the next one, or with
    `as_committed` when this one was. Raises CatalogError for a version that is not there.
    """

    def __init__(self, root: str, version: int | None = None, as_committed: bool = False):
        self.root = storage.absolute(root)
        self.version = version
        moment = None if version is None else self._moment(version, as_committed)
        self.sources = Table(self.root, "sources", moment)
        self.media = Table(self.root, "media", moment)
        self.duplicates = Table(self.root, "duplicates", moment)
        self.captions = Table(self.root, "captions", moment)
        self.tokens = Table(self.root, "tokens", version)

    def _moment(self, version: int, as_committed: bool) -> datetime:
        """When this version of `tokens` was committed, or the next one: until then the other tables belong to it."""
        commits = {commit["version"]: commit["timestamp"] for commit in Table(self.root, "tokens").history()}
        if version not in commits:
            known = f"{min(commits)} to {max(commits)}"
            raise CatalogError(f"{self.root}: there is no version {version}, only {known}; see `tokenmill log CONFIG`")
        before_ms = commits[version] + 1 if as_committed else commits.get(version + 1, int(time.time() * 1000) + 2)
        return datetime.fromtimestamp((before_ms - 1) / 1000, UTC)

    def __iter__(self) -> Iterator[Table]:
        return iter((self.sources, self.media, self.duplicates, self.captions, self.tokens))

    def create(self) -> None:
        """Create what is missing. Raises CatalogError with the reason."""
        for table in self:
            table.create()

    def read_absent_as_empty(self) -> None:
        """Let tables that were never created read as empty, for a plan, which creates nothing."""
        for table in self:
            table.is_new = not table.exists()

    def exists(self) -> bool:
        """True when the root holds a catalog."""
        return self.sources.exists()
