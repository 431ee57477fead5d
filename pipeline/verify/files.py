"""The data files of the tables: there, of their size, with the bytes that their names say; with `deep`, decoded.

A file is looked at on its own, several at once, and read in pieces: memory does not grow with the table.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from tokenmill import storage
from tokenmill.pipeline.catalog.shard_files import Shard, has_digest, is_as_written, write_shard
from tokenmill.pipeline.catalog.tables import Catalog, Table
from tokenmill.pipeline.refresh.arrow import repeated, set_columns
from tokenmill.pipeline.refresh.changed_keys import LOST
from tokenmill.pipeline.verify.problems import Aside, Problem
from tokenmill.storage.object_store import StoreError

_THREADS = 8
_GAP_S = 1e-3
_KEYS = {
    "sources": ["uri", "member"],
    "media": ["media_id", "fingerprint"],
    "duplicates": ["media_id"],
    "captions": ["media_id", "fingerprint"],
    "tokens": ["media_id", "fingerprint"],
}
_AGAIN = {
    "sources": "their files are read again",
    "media": "their files are read again",
    "duplicates": "decided anew",
    "captions": "made anew",
    "tokens": "made anew",
}


@dataclass(frozen=True)
class Codes:
    """What codes of rows of these fingerprints may be."""

    fingerprints: list[str]
    codebook_size: int


def find(table: Table, deep: Codes | None) -> tuple[list[Problem], list[str]]:
    """Damaged files of the newest version, and the whole ones; all are decoded where `deep` is given."""
    listed = pa.table(table.delta.get_add_actions()).select(["path", "size_bytes", "num_records"]).sort_by("path")
    filesystem, path = storage.filesystem(table.uri)
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    sizes = {info.base_name: info.size for info in infos}

    def look(file: dict[str, Any]) -> str | None:
        if file["path"] not in sizes:
            return "gone"
        if sizes[file["path"]] != file["size_bytes"]:
            return f"{sizes[file['path']]} bytes, {file['size_bytes']} were written"
        uri = storage.join(table.uri, file["path"])
        try:
            if has_digest(uri) and not is_as_written(uri):
                return "other bytes than were written"
            return _decoded(uri, file["num_records"], table, deep)
        except (pa.ArrowException, OSError, StoreError) as error:
            return (str(error) or type(error).__name__).splitlines()[0]

    with ThreadPoolExecutor(_THREADS) as threads:
        found = list(threads.map(look, files := listed.to_pylist()))
    whole = [storage.join(table.uri, file["path"]) for file, what in zip(files, found, strict=True) if what is None]
    broken = [file["path"] for file, what in zip(files, found, strict=True) if what is not None]
    mend = partial(_take_away, table, broken, whole)  # of all at once, in one version
    problems = []
    for file, what in zip(files, found, strict=True):
        if what is not None:
            hangs = f"{file['num_records']} rows of {table.name}, {_AGAIN[table.name]}"
            problems.append(Problem("data file", storage.join(table.uri, file["path"]), what, hangs, mend=mend))
    return problems, whole


def _decoded(uri: str, num_records: int | None, table: Table, deep: Codes | None) -> str | None:
    """What is wrong with the content; of files with a digest only `deep` reads it."""
    if deep is None and has_digest(uri):
        return None
    filesystem, path = storage.filesystem(uri)
    with filesystem.open_input_file(path) as stream:
        file = pq.ParquetFile(stream)
        if num_records not in (None, file.metadata.num_rows):
            return f"{file.metadata.num_rows} rows, {num_records} were written"
        for group in range(file.num_row_groups if deep else 0):
            rows = file.read_row_group(group, use_threads=False)
            rows.validate(full=True)
            if deep and table.name == "tokens" and (what := _wrong_codes(rows, deep)):
                return what
    return None


def _wrong_codes(rows: pa.Table, deep: Codes) -> str | None:
    """Codes that no codebook has, or too many or few for their grid. Rejected rows have none."""
    kept = rows.filter(pc.is_null(rows["reject_reason"]))
    counts = pc.fill_null(pc.list_value_length(kept["codes"]), -1).to_numpy()
    sides = [pc.fill_null(kept[name], 0).to_numpy().astype(np.int64) for name in ("grid_t", "grid_h", "grid_w")]
    if len(wrong := np.flatnonzero(counts != np.prod(sides, axis=0))):
        return f"{len(wrong)} rows whose codes do not fill their grids"
    ours = kept.filter(pc.is_in(kept["fingerprint"], value_set=pa.array(deep.fingerprints)))
    most = pc.max(ours["codes"].combine_chunks().flatten()).as_py()
    return f"code {most} of a codebook of {deep.codebook_size}" if (most or 0) >= deep.codebook_size else None


def _take_away(table: Table, broken: list[str], whole: list[str], aside: Aside) -> None:
    """One version without these files. Of sources that are lost, the other members of a container would count as all
    that it holds: in the same version all containers are marked, to be listed again.
    """
    table.refresh()
    there = {file.rsplit("/", 1)[1] for file in table.files()}
    if not (broken := [name for name in broken if name in there]):
        return  # done with the first of the problems
    added, removed, num_same = list[Shard](), list(broken), 0
    if table.name == "sources":
        for file, rows in _read(table, whole):
            is_container = pc.and_(pc.is_null(rows["member"]), pc.is_null(rows["file_id"]))
            if pc.any(is_container).as_py():
                marked = pc.if_else(is_container, repeated(LOST, rows), rows["fingerprint"])
                added.append(write_shard(table.root, table.name, set_columns(rows, fingerprint=marked)))
                removed.append(file.rsplit("/", 1)[1])
                num_same += rows.num_rows
    table.commit(added, removed, aside.note, num_same)
    for name in broken:
        aside.take(storage.join(table.uri, name))


def mark_lost(catalog: Catalog, files: pa.Array, aside: Aside) -> None:
    """Let the next run measure these files anew, by id."""

    def lost(rows: pa.Table) -> pa.Table:
        return set_columns(rows, fingerprint=repeated(LOST, rows))

    catalog.sources.edit(pc.field("file_id").isin(files), lost, aside.note)


def mark_videos_in_parts(catalog: Catalog, whole: list[str], aside: Aside) -> None:
    """Where media were lost, the other clips of a video would count as all of it. Marked are those with a gap between
    their clips, and the first and the last of each file, for shards may be cut within a video.
    """
    if len(videos := _videos_in_parts(catalog.media, whole)):
        mark_lost(catalog, videos, aside)


def _videos_in_parts(table: Table, whole: list[str]) -> pa.Array:
    found, clips = set[str](), list[pa.Table]()
    for _, rows in _read(table, whole, ["file_id", "start_s", "end_s"]):
        if rows.num_rows:
            ends = rows.take([0, rows.num_rows - 1])
            found |= set(ends.filter(pc.is_valid(ends["start_s"]))["file_id"].to_pylist())
        clips.append(rows.filter(pc.is_valid(rows["start_s"])))
    if not clips:
        return pa.array([], pa.string())
    order = [("file_id", "ascending"), ("start_s", "ascending")]
    rows = pa.concat_tables(clips).sort_by(order)
    begins = pc.fill_null(pc.not_equal(rows["file_id"], _before(rows["file_id"])), True)
    end_s = pc.if_else(begins, 0.0, _before(rows["end_s"]))
    has_gap = pc.greater(pc.subtract(rows["start_s"], end_s), _GAP_S)
    return pa.array(sorted(found | set(rows.filter(has_gap)["file_id"].to_pylist())), pa.string())


def _before(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Each row's predecessor; null for the first."""
    shifted = [pa.nulls(1, column.type), *column.slice(0, max(0, len(column) - 1)).chunks]
    return pa.chunked_array(shifted).slice(0, len(column))


def _read(table: Table, files: list[str], columns: list[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
    for file in files:
        yield file, table.read_files([file], columns)


def find_twice(table: Table, files: list[str]) -> list[Problem]:
    """Rows that stand in two files, as after a commit that took the older one away and is lost."""
    keys = _KEYS[table.name]
    parts = [table.read_files([file], keys) for file in files]
    if not parts:
        return []
    counts = pa.concat_tables(parts).group_by(keys).aggregate([([], "count_all")])
    num_twice = counts.filter(pc.greater(counts["count_all"], 1)).num_rows
    what, hangs = f"{num_twice} rows stand there twice", "nothing: the older ones go"
    mend = partial(_drop_older, table)
    return [Problem("log", table.uri, what, hangs, mend=mend)] if num_twice else []


def _drop_older(table: Table, aside: Aside) -> None:
    """Of rows with the same keys, those of the file that was committed last stay."""
    table.refresh()
    listed = pa.table(table.delta.get_add_actions()).select(["path", "modification_time"])
    seen: set[tuple[Any, ...]] = set()
    added, removed, num_same = list[Shard](), list[str](), 0
    for name in reversed(listed.sort_by("modification_time")["path"].to_pylist()):
        rows = table.read_files([storage.join(table.uri, name)])
        stays = []
        for key in zip(*(rows[column].to_pylist() for column in _KEYS[table.name]), strict=True):
            stays.append(key not in seen)
            seen.add(key)
        if all(stays):
            continue
        removed.append(name)
        if any(stays):
            added.append(write_shard(table.root, table.name, rows.filter(pa.array(stays))))
            num_same += added[-1].num_rows
    table.commit(added, removed, aside.note, num_same)
