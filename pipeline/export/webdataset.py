"""`tokenmill export webdataset`: kept rows of one version of `tokens` as tars that webdataset and wids open.

First the columns without codes are read: they give every sample's bytes in its tar (tokenizer/webdataset_shards.py), so
shards are cut in the order of media_id, and equal rows give equal files whatever the table's own files look like.
(webdataset's ShardWriter cuts behind the sample that is too much.) Then waves of shards are gathered in memory, 2 GiB
at once: each row group that a wave needs is read once, then webdataset writes the tars, four at once. A table of more
than 2 GiB is read once for each 2 GiB, because ids are spread over all of its row groups.

Threads do it, not Ray: decoding, hashing and writing leave Python's lock, and a copy should not start a cluster.

Another version in the same folder adds shards for samples that are new or changed and names those that are gone in
`tokenmill.json`, which is written last: a folder is what that document says. A name is never used for other content, so
`compact` writes the rest of the shards that hold removed samples under new names and then deletes the old ones.
"""

import hashlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.export_registry import remember_export
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.reports.terminal import Meter, PhaseReport
from tokenmill.storage.checksums import signed
from tokenmill.storage.identity import content_id
from tokenmill.tokenizer import webdataset_shards
from tokenmill.tokenizer.webdataset_shards import Sample

WIDS_INDEX = "index.json"
_SHARD = re.compile(r"shard-\d{6}\.(tar|parquet)")
_PARTIAL = re.compile(rf"\.{_SHARD.pattern}\.\d+")  # what a killed writer leaves on a disk
_WAVE_BYTES = 2 << 30
_THREADS = 4  # each takes 0.1 GB to decode a row group of 8 million codes
_PLACES = pa.schema(
    [
        pa.field("media_id", pa.string()),
        pa.field("digest", pa.uint64()),
        pa.field("num_bytes", pa.int64()),
        pa.field("file", pa.int32()),
        pa.field("row_group", pa.int32()),
        pa.field("row", pa.int32()),
    ]
)


@dataclass(frozen=True)
class _Shard:
    """One tar to write: its samples in order of media_id, and where each begins."""

    uri: str
    places: pa.Table
    offsets: np.ndarray  # int64
    num_bytes: int

    @property
    def name(self) -> str:
        return self.uri.rsplit("/", 1)[1]


def export_webdataset(
    config: RunConfig, out: str, version: int | None, shard_mb: int, compact: bool, console: Console
) -> None:
    """Bring the export under `out` (a folder or s3://) to `version` of the tokens; null is the config's.

    Raises CatalogError without a catalog, without kept rows for a new export, or when `out` holds tars that are no
    export.
    """
    catalog = Catalog(config.root, config.version if version is None else version)
    if not catalog.exists():
        raise CatalogError(f"{catalog.root}: no catalog there yet; run `tokenmill run CONFIG` first")
    source = _Source(catalog.tokens.files())
    wanted = source.places()
    out = storage.absolute(out)
    if not wanted.num_rows and not storage.exists(storage.join(out, webdataset_shards.DOCUMENT)):
        raise CatalogError(
            f"{catalog.tokens.uri}: version {catalog.tokens.version} holds no kept row; "
            "run `tokenmill tokenize CONFIG` first"
        )
    if twice := _first_repeated(wanted["media_id"]):
        raise CatalogError(
            f"{catalog.tokens.uri}: version {catalog.tokens.version} holds {twice} under two tokenizers; "
            "finish `tokenmill tokenize CONFIG`, or name another --version"
        )

    remember_export(catalog.root, "webdataset", out)
    before = _open(out)
    alive, removed = _compare(out, before["shards"], wanted)
    kept = [shard for shard in before["shards"] if not (compact and shard["name"] in removed)]
    removed = {} if compact else removed
    there = np.zeros(len(wanted), bool)
    for shard in kept:
        there[alive[shard["name"]]] = True
    todo = wanted.filter(pa.array(~there))
    shards = _cut(todo, out, before["next_shard"], shard_mb << 20)
    with Meter(console, PhaseReport("export"), len(todo), "samples") as meter:
        added = _write(shards, source, meter.arrived)

    document = {
        "format": webdataset_shards.FORMAT,
        "tokens_version": catalog.tokens.version,
        "num_samples": len(wanted),
        "shards": kept + added,
        "removed": removed,
        "next_shard": before["next_shard"] + len(added),
    }
    storage.write_json(storage.join(out, WIDS_INDEX), _wids(document["shards"]))
    storage.write_json(storage.join(out, webdataset_shards.DOCUMENT), signed(document))
    _delete_unlisted(out, document["shards"])
    num_removed = sum(len(keys) for keys in removed.values())
    console.print(
        f"{len(wanted)} samples of tokens version {catalog.tokens.version}: {len(todo)} in {len(added)} new shards, "
        f"{len(wanted) - len(todo)} there already, {num_removed} removed"
        f"{' (--compact writes their shards anew)' if num_removed else ''}: {out}",
        highlight=False,
    )


class _Source:
    """The token shards of one version."""

    def __init__(self, uris: list[str]):
        self._uris = uris
        with ThreadPoolExecutor(_THREADS) as threads:
            self._footers = list(threads.map(self._footer, uris))

    @staticmethod
    def _footer(uri: str) -> pq.FileMetaData:
        filesystem, path = storage.filesystem(uri)
        with filesystem.open_input_file(path) as stream:
            return pq.ParquetFile(stream).metadata

    def read(self, file: int, row_group: int, columns: list[str]) -> pa.Table:
        """Columns of one row group."""
        filesystem, path = storage.filesystem(self._uris[file])
        with filesystem.open_input_file(path) as stream:
            shard = pq.ParquetFile(stream, metadata=self._footers[file], pre_buffer=True)
            return shard.read_row_group(row_group, columns=columns, use_threads=False)

    def places(self) -> pa.Table:
        """Every kept row: its digest, size and place, in order of media_id; columns as _PLACES."""
        groups = [(file, i) for file, footer in enumerate(self._footers) for i in range(footer.num_row_groups)]
        with ThreadPoolExecutor(_THREADS) as threads:
            parts = list(threads.map(lambda place: self._group_places(*place), groups))
        return pa.concat_tables([_PLACES.empty_table(), *parts]).sort_by("media_id").combine_chunks()

    def _group_places(self, file: int, row_group: int) -> pa.Table:
        table = self.read(file, row_group, [*webdataset_shards.ROW, "reject_reason"])
        is_whole = pc.or_(pc.is_valid(table["grid_t"]), pc.equal(table["kind"], "text"))
        is_kept = pc.and_(pc.is_null(table["reject_reason"]), is_whole)
        samples = [Sample.of(row) for row in table.select(webdataset_shards.ROW).filter(is_kept).to_pylist()]
        columns = {
            "media_id": [sample.key for sample in samples],
            "digest": [sample.digest for sample in samples],
            "num_bytes": [sample.num_bytes for sample in samples],
            "file": [file] * len(samples),
            "row_group": [row_group] * len(samples),
            "row": np.flatnonzero(is_kept.to_numpy()),
        }
        return pa.table({field.name: pa.array(columns[field.name], field.type) for field in _PLACES})

    def fill(self, file: int, row_group: int, samples: pa.Table, into: list[dict[int, dict[str, Any]]]) -> pa.Table:
        """Put samples of one row group among those of their tars, by offset.

        `samples` has the columns row, shard (position in `into`), offset. Returns members with a column `shard`.
        Raises CatalogError for a row whose codes are not what its grid says.
        """
        table = self.read(file, row_group, [*webdataset_shards.ROW, "codes"])
        codes = table["codes"].combine_chunks()
        values, bounds = codes.values.to_numpy(), codes.offsets.to_numpy()
        rows, shards, offsets = (samples[name].to_pylist() for name in ("row", "shard", "offset"))
        written = table.select(webdataset_shards.ROW).take(samples["row"])
        for name in ("grid_t", "grid_h", "grid_w"):  # text has no grid
            place = written.column_names.index(name)
            written = written.set_column(place, written.field(name), pc.fill_null(written[name], 0))
        made = []
        for row, shard, offset, record in zip(rows, shards, offsets, written.to_pylist(), strict=True):
            sample = Sample.of(record)
            own = values[bounds[row] : bounds[row + 1]]
            if len(own) != sample.num_codes:
                raise CatalogError(
                    f"{self._uris[file]}: {sample.key} has {len(own)} codes in a grid of {sample.grid}; "
                    "the file is damaged: delete the row and tokenize again"
                )
            into[shard][offset] = sample.files(own)
            made.append(sample.place(offset))
        for name in webdataset_shards.MEMBERS.names[len(webdataset_shards.ROW) :]:
            column = pa.array([each[name] for each in made], webdataset_shards.MEMBERS.field(name).type)
            written = written.append_column(name, column)
        return written.append_column("shard", samples["shard"])


def _first_repeated(ids: pa.ChunkedArray) -> str | None:
    repeated = ids.slice(1).filter(pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1)))
    return repeated[0].as_py() if len(repeated) else None


def _open(out: str) -> dict[str, Any]:
    """`tokenmill.json` of the folder; a new one for a new folder, so that its tars are known to be ours."""
    empty: dict[str, Any] = {
        "format": webdataset_shards.FORMAT,
        "tokens_version": None,
        "shards": [],
        "removed": {},
        "next_shard": 0,
    }
    place = storage.join(out, webdataset_shards.DOCUMENT)
    if storage.exists(place):
        try:
            return webdataset_shards.read_export(out, must_be_whole=False).document
        except webdataset_shards.ExportStoppedError:
            return empty
        except webdataset_shards.ExportError as error:
            raise CatalogError(str(error)) from None
    if any(_SHARD.fullmatch(name) for name in storage.list_names(out)):
        raise CatalogError(
            f"{out}: holds tars but no {webdataset_shards.DOCUMENT}, so they are not ours; give --out another folder"
        )
    storage.write_json(place, empty)
    return empty


def _compare(
    out: str, shards: list[dict[str, Any]], wanted: pa.Table
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """By shard: positions in `wanted` of the samples it holds as they are wanted, and the keys of all others."""
    alive, removed = {}, {}
    for shard in shards:
        members, _ = webdataset_shards.read_members(storage.join(out, shard["name"]), ["media_id", "digest"])
        at = pc.index_in(members["media_id"], value_set=wanted["media_id"].combine_chunks())
        is_alive = pc.fill_null(pc.equal(members["digest"], wanted["digest"].take(at)), False)
        alive[shard["name"]] = at.filter(is_alive).to_numpy()
        if keys := members["media_id"].filter(pc.invert(is_alive)).to_pylist():
            removed[shard["name"]] = keys
    return alive, removed


def _cut(places: pa.Table, out: str, first: int, shard_bytes: int) -> list[_Shard]:
    """Shards of at most `shard_bytes` (one sample may be larger), numbered from `first`."""
    if not len(places):
        return []
    sizes = places["num_bytes"].to_numpy()
    starts, size = [0], 0
    for position, num_bytes in enumerate(sizes.tolist()):
        if size and webdataset_shards.tar_bytes(size + num_bytes) > shard_bytes:
            starts.append(position)
            size = 0
        size += num_bytes
    shards = []
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(sizes)], strict=True), first):
        ends = np.cumsum(sizes[start:end])
        uri = storage.join(out, f"shard-{number:06d}.tar")
        shards.append(
            _Shard(
                uri,
                places.slice(start, end - start),
                ends - sizes[start:end],
                webdataset_shards.tar_bytes(int(ends[-1])),
            )
        )
    return shards


def _write(shards: list[_Shard], source: _Source, on_samples: Callable[[int], None]) -> list[dict[str, Any]]:
    """Write what is not there yet; returns the shards' entries in `tokenmill.json`."""
    entries: dict[str, dict[str, Any]] = {}
    todo = []
    for shard in shards:
        if md5sum := _md5_if_written(shard):
            entries[shard.name] = _entry(shard, md5sum)
            on_samples(len(shard.places))
        else:
            todo.append(shard)
    while todo:
        wave = [todo.pop(0)]
        while todo and sum(shard.num_bytes for shard in wave) + todo[0].num_bytes <= _WAVE_BYTES:
            wave.append(todo.pop(0))
        for shard, md5sum in zip(wave, _write_wave(wave, source), strict=True):
            entries[shard.name] = _entry(shard, md5sum)
            on_samples(len(shard.places))
    return [entries[shard.name] for shard in shards]


def _md5_if_written(shard: _Shard) -> str | None:
    """The MD5 of the tar when an export that was stopped wrote it whole, with these samples."""
    try:
        members, md5sum = webdataset_shards.read_members(shard.uri, ["media_id", "digest"])
    except FileNotFoundError:
        return None
    filesystem, path = storage.filesystem(shard.uri)
    is_same = members.equals(shard.places.select(["media_id", "digest"]).cast(members.schema))
    return md5sum if is_same and filesystem.get_file_info(path).size == shard.num_bytes else None


def _write_wave(wave: list[_Shard], source: _Source) -> list[str]:
    """Write the tars of some shards after one pass over the row groups that hold their samples; returns their MD5s."""
    samples_of: list[dict[int, dict[str, Any]]] = [{} for _ in wave]
    places = pa.concat_tables(
        shard.places.select(["file", "row_group", "row"])
        .append_column("shard", pa.array(np.full(len(shard.places), i, np.int32)))
        .append_column("offset", pa.array(shard.offsets))
        for i, shard in enumerate(wave)
    ).sort_by([("file", "ascending"), ("row_group", "ascending"), ("row", "ascending")])
    keys = places["file"].to_numpy().astype(np.int64) << 32 | places["row_group"].to_numpy()
    starts = np.flatnonzero(np.diff(keys, prepend=-1))

    def fill(start: int, end: int) -> pa.Table:
        samples = places.slice(start, end - start)
        return source.fill(samples["file"][0].as_py(), samples["row_group"][0].as_py(), samples, samples_of)

    def write(i: int) -> str:
        shard = wave[i]
        members = parts.filter(pc.equal(parts["shard"], i)).select(webdataset_shards.MEMBERS.names).sort_by("offset")
        if storage.exists(webdataset_shards.members_uri(shard.uri)):
            storage.delete_file(
                webdataset_shards.members_uri(shard.uri)
            )  # until it is written anew, the tar counts as unwritten
        tar = webdataset_shards.tar_of(samples_of[i].pop(offset) for offset in shard.offsets.tolist())
        assert len(tar) == shard.num_bytes, f"webdataset wrote {len(tar)} bytes, the members say {shard.num_bytes}"
        md5sum = hashlib.md5(tar, usedforsecurity=False).hexdigest()
        storage.write_bytes(shard.uri, tar)
        webdataset_shards.write_members(members, shard.uri, md5sum)
        return md5sum

    with ThreadPoolExecutor(_THREADS) as threads:
        parts = pa.concat_tables(threads.map(fill, starts.tolist(), [*starts[1:].tolist(), len(keys)]))
        return list(threads.map(write, range(len(wave))))


def _entry(shard: _Shard, md5sum: str) -> dict[str, Any]:
    ids = shard.places["media_id"]
    return {
        "name": shard.name,
        "num_samples": len(ids),
        "size_bytes": shard.num_bytes,
        "md5sum": md5sum,
        "members_id": content_id([storage.read_bytes(webdataset_shards.members_uri(shard.uri))]),
        "first_key": ids[0].as_py(),
        "last_key": ids[-1].as_py(),
    }


def _wids(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """The index that wids opens; `url` is relative to it."""
    names = {"url": "name", "nsamples": "num_samples", "filesize": "size_bytes", "md5sum": "md5sum"}
    listed = [{theirs: shard[ours] for theirs, ours in names.items()} for shard in shards]
    return {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": "tokens", "shardlist": listed}


def _delete_unlisted(out: str, shards: list[dict[str, Any]]) -> None:
    """Delete shards that the document does not name: those compacted away, and leftovers of another, stopped plan."""
    listed = {shard["name"] for shard in shards} | {webdataset_shards.members_uri(shard["name"]) for shard in shards}
    for name in storage.list_names(out):
        if (_SHARD.fullmatch(name) and name not in listed) or _PARTIAL.fullmatch(name):
            storage.delete_file(storage.join(out, name))
