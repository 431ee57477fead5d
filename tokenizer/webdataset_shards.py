"""The token shard as a tar, the form in which webdataset and wids exchange samples, and the way back to codes.

A sample is `KEY.codes.npy` (uint16, (grid_t, grid_h, grid_w)), `KEY.json` and, with a caption, `KEY.txt`; KEY is the
media_id. A text document is `KEY.json`, with its kind, and `KEY.txt`: it has no codes. webdataset writes the tars, with
time, owner and group 0, so equal rows give equal files anywhere.

Beside `shard-000000.tar` stands `shard-000000.parquet`, its members: a token shard without codes, whose row groups are
stretches of at most 16 MiB of the tar. Training reads rows there and codes by range: its order is random, webdataset
reads from front to back, and at that takes 13 times as long for 90x90 codes and 40 times for 8x8
(benchmarks/RESULTS.md). Where codes stand is arithmetic here, because webdataset tells no offset and shards are cut
before any code is read. `tokenmill.json` says which shards make the export, and which of their samples are no longer
part of it; it is written last.

Source: POSIX.1-1988 ustar; NumPy's format version 1.0.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenmill import storage
from tokenmill.storage.checksums import is_as_signed
from tokenmill.storage.errors import DamagedError, UserError
from tokenmill.storage.failures import as_damaged
from tokenmill.storage.identity import fingerprint_of

DOCUMENT = "tokenmill.json"
_TAR = re.compile(r"[\w.-]+\.tar")
LOST = "lost"  # in it: names of tars that were damaged and set aside
FORMAT = "tokenmill-webdataset-1"
MEMBERS = pa.schema(
    [
        pa.field("media_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("grid_t", pa.int32(), nullable=False),
        pa.field("grid_h", pa.int32(), nullable=False),
        pa.field("grid_w", pa.int32(), nullable=False),
        pa.field("fps", pa.float64()),
        pa.field("frames_trimmed", pa.int32()),
        pa.field("caption", pa.string()),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field(
            "digest", pa.uint64(), nullable=False
        ),  # of KEY.json, which determines the sample; of text KEY.txt too
        pa.field("offset", pa.int64(), nullable=False),  # of the sample's first header in the tar
        pa.field("num_bytes", pa.int64(), nullable=False),  # of the sample with its headers
        pa.field(
            "codes_offset", pa.int64(), nullable=False
        ),  # of the first code in the tar; little-endian uint16; of text `offset`
    ]
)
ROW = MEMBERS.names[: MEMBERS.get_field_index("fingerprint") + 1]  # those of a token shard
CODES_PLACE = ["grid_t", "grid_h", "grid_w", "codes_offset"]  # what read_codes needs
_BLOCK = 512
_RECORD = 20 * _BLOCK  # tars end with zeros up to a multiple of this
_GROUP_BYTES = 16 << 20


class ExportError(UserError, ValueError):
    """A folder is no finished export; the message says what to do."""


class ExportStoppedError(ExportError):
    """An export that was begun and is not finished."""


@dataclass(frozen=True)
class Sample:
    """One row as the members of a tar, without its codes."""

    key: str
    grid: tuple[int, int, int] | None  # None for a text document, which has no codes
    metadata: bytes  # KEY.json
    caption: bytes | None  # KEY.txt

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Sample":
        """From a row with the columns ROW."""
        grid = None if row["kind"] == "text" else (row["grid_t"], row["grid_h"], row["grid_w"])
        document: dict[str, Any] = {name: row[name] for name in ("media_id", "kind", "fingerprint")}
        if grid is not None:
            document |= {name: row[name] for name in ("fps", "caption", "frames_trimmed")} | {"grid": grid}
        metadata = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
        caption = None if row["caption"] is None else row["caption"].encode()
        return cls(row["media_id"], grid, metadata, caption)

    @property
    def digest(self) -> int:
        """64 bits of BLAKE2b over the metadata, which with the tokenizer's fingerprint determines the codes too.

        A text document stands in its `KEY.txt` alone, so that is hashed as well.
        """
        content = self.metadata if self.grid is not None else self.metadata + (self.caption or b"")
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")

    @property
    def num_codes(self) -> int:
        """Codes of the grid."""
        return 0 if self.grid is None else prod(self.grid)

    @property
    def num_bytes(self) -> int:
        """What the sample takes in a tar."""
        sizes = [len(text) for text in (self.metadata, self.caption) if text is not None]
        if self.grid is not None:
            sizes.append(len(_npy_header(self.grid)) + 2 * self.num_codes)
        return sum(_BLOCK + _padded(size) for size in sizes)

    def place(self, offset: int) -> dict[str, int]:
        """The columns of MEMBERS that say where the sample is, in a tar that holds it at `offset`."""
        start = offset if self.grid is None else offset + _BLOCK + len(_npy_header(self.grid))
        return {"digest": self.digest, "offset": offset, "num_bytes": self.num_bytes, "codes_offset": start}

    def files(self, codes: np.ndarray) -> dict[str, Any]:
        """What webdataset's TarWriter takes, with a copy of `codes`: uint16, flat, in row-major order."""
        made: dict[str, Any] = {"__key__": self.key, "json": self.metadata}
        if self.grid is not None:
            made["codes.npy"] = np.array(codes, "<u2").reshape(self.grid)
        if self.caption is not None:
            made["txt"] = self.caption
        return made


def tar_of(samples: Iterable[dict[str, Any]]) -> bytes:
    """A tar of `Sample.files`, in that order."""
    from webdataset import TarWriter  # imports torch: a second

    tar = io.BytesIO()
    with TarWriter(tar, user="", group="", mode=0o644, mtime=0) as writer:
        for sample in samples:
            writer.write(sample)
    return tar.getvalue()


def tar_bytes(samples_bytes: int) -> int:
    """Size of the tar whose samples take that many bytes: two empty blocks end it."""
    return -(-(samples_bytes + 2 * _BLOCK) // _RECORD) * _RECORD


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


@lru_cache(maxsize=4096)
def _npy_header(grid: tuple[int, int, int]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<u2", "fortran_order": False, "shape": grid})
    return stream.getvalue()


def is_tar(uri: str) -> bool:
    """True for a tar, false for a Parquet shard."""
    return uri.endswith(".tar")


def members_uri(tar_uri: str) -> str:
    """The Parquet file that lists the members of a tar."""
    return f"{tar_uri.removesuffix('.tar')}.parquet"


def write_members(members: pa.Table, tar_uri: str, md5sum: str) -> None:
    """Write the members of a tar, whole or not at all; the tar's MD5 goes into the file's metadata."""
    schema = MEMBERS.with_metadata({"md5sum": md5sum})
    starts = np.flatnonzero(np.diff(members["offset"].to_numpy() // _GROUP_BYTES, prepend=-1))
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for start, end in zip(starts, [*starts[1:], len(members)], strict=True):
            writer.write_table(members.slice(start, end - start).cast(schema))
    storage.write_bytes(members_uri(tar_uri), sink.getvalue())


def read_members(tar_uri: str, columns: list[str] | None = None) -> tuple[pa.Table, str]:
    """The members of a tar and its MD5. Raises FileNotFoundError, DamagedError."""
    uri = members_uri(tar_uri)
    data = storage.read_bytes(uri)
    with as_damaged(uri):
        table = pq.read_table(pa.BufferReader(data), columns=columns)
        table.validate(full=True)
        return table, table.schema.metadata[b"md5sum"].decode()


def read_codes(tar_uri: str, members: pa.Table) -> pa.ListArray:
    """Codes of neighbouring members (columns CODES_PLACE), list<uint16>, by one ranged read; none for text.

    Raises OSError when the tar is gone.
    """
    counts = np.prod([members[name].to_numpy() for name in ("grid_t", "grid_h", "grid_w")], axis=0, dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    codes = np.empty(offsets[-1], np.uint16)
    some = counts > 0
    first, counts, places = members["codes_offset"].to_numpy()[some], counts[some], offsets[:-1][some]
    data = b""
    if len(first):
        filesystem, path = storage.filesystem(tar_uri)
        with filesystem.open_input_file(path) as stream:
            data = stream.read_at(int((first + 2 * counts).max() - first.min()), int(first.min()))
        first = first - first.min()
    for start, count, at in zip(first.tolist(), counts.tolist(), places.tolist(), strict=True):
        codes[at : at + count] = np.frombuffer(data, "<u2", count, start)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(codes))


@dataclass(frozen=True)
class Export:
    """A finished export: the samples of its tars, less the removed ones, are the kept rows of one tokens version."""

    uri: str
    document: dict[str, Any]  # tokenmill.json

    @property
    def tokens_version(self) -> int:
        """The version of the `tokens` table."""
        return self.document["tokens_version"]

    @property
    def shard_uris(self) -> list[str]:
        """Where the tars stand, by name."""
        return [storage.join(self.uri, shard["name"]) for shard in self.document["shards"]]

    @property
    def removed(self) -> dict[str, list[str]]:
        """By name of a tar, the keys of those of its samples that are no part of the export."""
        return self.document["removed"]

    @property
    def id(self) -> str:
        """16 hex digits that change with any sample and its place."""
        return fingerprint_of([shard["md5sum"] for shard in self.document["shards"]], self.removed)


def read_export(uri: str, must_be_whole: bool = True) -> Export:
    """The export at `uri`, a folder or s3:// prefix; members that a copy of it left behind are made from their tars.

    Raises ExportError when there is none, it is not finished, a tar whose members are to be made is not as written, or,
    with `must_be_whole`, tars were set aside as damaged.
    """
    uri = storage.absolute(uri)
    place = storage.join(uri, DOCUMENT)
    if not storage.exists(place):
        raise ExportError(f"{place}: not there; write an export with `tokenmill export webdataset CONFIG --out {uri}`")
    document = storage.read_json(place, "format")
    if document["format"] != FORMAT:
        raise ExportError(f"{place}: not an export that this version reads (format {FORMAT}); export into a new folder")
    if not is_intact(document):
        raise DamagedError(place)
    if document["tokens_version"] is None:
        raise ExportStoppedError(
            f"{place}: the export was stopped; run the same `tokenmill export webdataset` to complete it"
        )
    if must_be_whole and (lost := document.get(LOST)):
        raise ExportError(
            f"{place}: {', '.join(lost)} set aside as damaged; `tokenmill export webdataset` writes the samples again"
        )
    there = set(storage.list_names(uri))
    for shard in document["shards"]:
        if members_uri(shard["name"]) not in there:
            _restore_members(storage.join(uri, shard["name"]), shard)
    return Export(uri, document)


def is_intact(document: Any) -> bool:
    """Whether `tokenmill.json` is as it was written; one of an older release, whether it looks like it."""
    if not (isinstance(document, dict) and {"tokens_version", "shards", "removed"} <= document.keys()):
        return False
    shards = document["shards"]
    if not (isinstance(shards, list) and isinstance(document["removed"], dict) and is_as_signed(document)):
        return False
    return all(
        isinstance(shard, dict)
        and all(isinstance(shard.get(name), str) for name in ("name", "md5sum"))
        and _TAR.fullmatch(shard["name"]) is not None
        for shard in shards
    )


def _restore_members(tar_uri: str, shard: dict[str, Any]) -> None:
    """Write the members of a tar anew, as the export wrote them; `shard` is its entry in `tokenmill.json`.

    The bytes are read here: webdataset's `gopen` runs what is called `pipe:` in a shell, and knows no store of ours.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander  # imports torch: a second

    try:
        tar = storage.read_bytes(tar_uri)
    except FileNotFoundError:
        tar = b""
    if hashlib.md5(tar, usedforsecurity=False).hexdigest() != shard["md5sum"]:
        raise ExportError(
            f"{tar_uri}: gone or damaged, and {members_uri(shard['name'])} is not there; export into a new folder"
        )
    rows: list[dict[str, Any]] = []
    offset = 0
    for files in group_by_keys(tar_file_expander([{"url": tar_uri, "stream": io.BytesIO(tar)}])):
        row = _row(files)
        rows.append(row | Sample.of(row).place(offset))
        offset += rows[-1]["num_bytes"]
    write_members(pa.Table.from_pylist(rows, MEMBERS), tar_uri, shard["md5sum"])


def _row(files: dict[str, Any]) -> dict[str, Any]:
    """The columns ROW of a sample as webdataset reads it, undecoded."""
    document = json.loads(files["json"])
    grid = document.pop("grid", (0, 0, 0))
    sides = dict(zip(("grid_t", "grid_h", "grid_w"), grid, strict=True))
    caption = files["txt"].decode() if "txt" in files else None
    return dict.fromkeys(ROW) | document | sides | {"caption": caption}
