"""`tokenmill export parquet`: kept images and clips with their captions as Parquet, in the form that the `datasets`
library and the Hugging Face hub show, with a dataset card.

    images/00000-of-00004-1f0c....parquet    a span of media_ids; the digest is that of its rows
    clips/...
    README.md                                what it holds, where it comes from, how it was chosen

Equal rows give equal names, so a second export writes the spans in which something changed, and deletes those that
nobody asks for any more.
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from tokenmill import stages, storage
from tokenmill.pipeline.catalog.export_registry import remember_export
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.export.card import dataset_card, licence_of
from tokenmill.pipeline.export.files import kept_media, opened
from tokenmill.pipeline.export.media import cut_clips
from tokenmill.pipeline.reports.terminal import Meter, PhaseReport
from tokenmill.storage import scratch
from tokenmill.storage.identity import content_id

FOLDERS = {"image": "images", "video": "clips"}
CARD = "README.md"
_GROUP_BYTES = 64 << 20  # of media in a row group, which a reader holds
_MEDIUM = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
_COLUMNS = {
    "caption": pa.string(),
    "media_id": pa.string(),
    "source": pa.string(),
    "width_px": pa.int32(),
    "height_px": pa.int32(),
    "metadata": pa.string(),
}
_CLIP_COLUMNS = {"fps": pa.float64(), "duration_s": pa.float64()}


@dataclass(frozen=True)
class Span:
    """Media of a kind whose ids begin alike, in one file."""

    kind: str
    number: int
    of: int
    rows: list[dict[str, Any]]

    def name(self, rows: list[dict[str, Any]]) -> str:
        """Of the file with those of the rows that could be read."""
        digest = hashlib.blake2b(digest_size=8)
        for row in rows:
            digest.update(json.dumps([row["media_id"], row["caption"], row["metadata"], _source(row)]).encode())
        return f"{FOLDERS[self.kind]}/{self.number:05d}-of-{self.of:05d}-{digest.hexdigest()}.parquet"


def export_parquet(config: RunConfig, out: str, license_name: str | None, shard_mb: int, console: Console) -> None:
    """Bring the export under `out`, a folder or s3://, to what is kept. Raises CatalogError without a catalog."""
    catalog, rows = kept_media(config, ("image", "video"))
    out = storage.absolute(out)
    remember_export(catalog.root, "parquet", out)
    spans = [span for kind in FOLDERS for span in _spans(kind, rows, shard_mb << 20)]
    there = {name for folder in FOLDERS.values() for name in _names(storage.join(out, folder), folder)}
    names, failed, counts = set[str](), Counter[str](), Counter[str]()
    todo = [span for span in spans if span.name(span.rows) not in there]
    with Meter(console, PhaseReport("export"), sum(len(span.rows) for span in todo), "media") as meter:
        for span in spans:
            name, written = span.name(span.rows), span.rows
            if name not in there:
                name, written = _write(span, out, config, failed, meter)
            names |= {name} if written else set()
            counts[span.kind] += len(written)
    for name in there - names:
        storage.delete_file(storage.join(out, name))
    old = storage.join(out, CARD)
    if license_name is None and storage.exists(old):
        license_name = licence_of(storage.read_bytes(old).decode())
    card = dataset_card(config, catalog, counts, sum(row["caption"] is not None for row in rows), license_name)
    storage.write_bytes(old, card.encode())
    kinds = ", ".join(f"{counts[kind]:,} {folder}" for kind, folder in FOLDERS.items())
    done = f"{len(names - there)} files written, {len(names & there)} there already, {len(there - names)} deleted"
    console.print(f"{kinds}: {done}: {out}", highlight=False)
    for reason, count in failed.most_common():
        console.print(f"  {count} x {reason}", style="yellow", highlight=False, markup=False)


def _spans(kind: str, rows: list[dict[str, Any]], shard_bytes: int) -> Iterator[Span]:
    """In the order of ids; a power of two of them, so that few media more do not move all others."""
    mine = [row for row in rows if row["kind"] == kind]
    num_bytes = sum(row["size_bytes"] or 0 for row in mine)
    number = 1
    while number * shard_bytes < num_bytes and number < len(mine):
        number *= 2
    parts: list[list[dict[str, Any]]] = [[] for _ in range(number)]
    for row in mine:
        parts[int(row["media_id"][:8], 16) * number >> 32].append(row)
    for place, part in enumerate(parts):
        if part:
            yield Span(kind, place, number, part)


def _names(uri: str, folder: str) -> list[str]:
    names = storage.list_names(uri) if storage.exists(uri) else []
    return [f"{folder}/{name}" for name in names if name.endswith(".parquet")]


def _write(
    span: Span, out: str, config: RunConfig, failed: Counter[str], meter: Meter
) -> tuple[str, list[dict[str, Any]]]:
    """Write a span's file; its name, and the rows that are in it."""
    schema = _schema(span.kind)
    written: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tokenmill-", dir=scratch.folder()) as folder:
        path = Path(folder, "span.parquet")
        with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
            group, num_bytes = [], 0
            for row, content in _contents(span, config, Path(folder), failed, meter):
                written.append(row)
                group.append(_record(row, content, schema))
                num_bytes += len(content)
                if num_bytes > _GROUP_BYTES:
                    writer.write_table(pa.Table.from_pylist(group, schema))
                    group, num_bytes = [], 0
            if group:
                writer.write_table(pa.Table.from_pylist(group, schema))
        name = span.name(written)
        if written:
            storage.write_file(storage.join(out, name), str(path))
    return name, written


def _contents(
    span: Span, config: RunConfig, folder: Path, failed: Counter[str], meter: Meter
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Rows in their order, each with the bytes of its file: those of the source, of clips those cut anew."""
    if span.kind == "video":
        by_file: dict[str, list[dict[str, Any]]] = {}
        for row in span.rows:
            by_file.setdefault(row["file_id"], []).append(row)
        for mine in by_file.values():
            for _, reason in opened(mine, config.fetched, lambda rows, places: cut_clips(rows, str(folder), places)):
                failed[reason] += 1
    for row in span.rows:
        meter.arrived(1)
        content = _cut(folder / row["file"]) if span.kind == "video" else _read(row, config.fetched, failed)
        if content is not None:
            yield row, content


def _cut(path: Path) -> bytes | None:
    """A clip that was cut; its file goes."""
    if not path.exists():
        return None
    content = path.read_bytes()
    path.unlink()
    return content


def _read(row: dict[str, Any], fetched: str, failed: Counter[str]) -> bytes | None:
    found: list[bytes] = []

    def read(rows: list[dict[str, Any]], places: stages.Places) -> list[tuple[dict[str, Any], str]]:
        content = places.read(rows[0])
        if content_id([content]) != rows[0]["file_id"]:
            return [(rows[0], "changed: refresh the sources")]
        found.append(content)
        return []

    failed.update(reason for _, reason in opened([row], fetched, read))
    return found[0] if found else None


def _record(row: dict[str, Any], content: bytes, schema: pa.Schema) -> dict[str, Any]:
    medium = "video" if row["kind"] == "video" else "image"
    known = {name: row.get(name) for name in schema.names if name != medium}
    return known | {medium: {"bytes": content, "path": row["file"]}, "source": _source(row)}


def _source(row: dict[str, Any]) -> str:
    return row["uri"] if row["member"] is None else f"{row['uri']}#{row['member']}"


def _schema(kind: str) -> pa.Schema:
    """With what the `datasets` library reads of a file, so that media are shown as such."""
    medium, of = ("video", "Video") if kind == "video" else ("image", "Image")
    columns = _COLUMNS | (_CLIP_COLUMNS if kind == "video" else {})
    features: dict[str, Any] = {medium: {"_type": of}}
    features |= {
        name: {"dtype": str(type_).replace("double", "float64"), "_type": "Value"} for name, type_ in columns.items()
    }
    schema = pa.schema([pa.field(medium, _MEDIUM), *(pa.field(name, type_) for name, type_ in columns.items())])
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
