"""Containers -> their members, one after the other: tars, tables of bytes, lists of URLs, text documents. Of a
captions.jsonl they are the malformed lines: what is said in the others belongs to the files that they name.

A container is read once, from front to back, and never unpacked: a member is a name, and bytes in memory, a span of the
file, or a URL. Names are keys and nothing else; no path is made of one. What is wrong with one member is said of that
member; what is wrong with the container raises `RowError` and ends it, after the members before the damage.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenmill import storage
from tokenmill.stages.read import lines
from tokenmill.stages.read.formats import HEAD_BYTES, sniff
from tokenmill.stages.table import limits
from tokenmill.stages.table.rows import RowError, words
from tokenmill.stages.table.text import MAX_CAPTION_CHARS, clean, clean_fields, clean_name
from tokenmill.storage.identity import content_id

HELD_BYTES = 1 << 26  # larger members of a tar are read by their span, later
_ROWS_AT_ONCE = 32
_LOOKED_AT = 100  # rows of a table among which one must have the columns that are looked for
# What stands beside a medium under the same key; whatever else is no medium becomes a rejected row.
_COMPANIONS = frozenset(
    (
        *("cap", "caption", "cls", "csv", "flac", "id", "index", "jsonl", "md5", "mp3", "npy", "npz", "parquet"),
        *("pickle", "pkl", "pt", "pth", "pyd", "srt", "ten", "url", "vtt", "wav", "xml"),
    )
)
_COLUMNS = {  # names by which columns are found, best first
    "bytes": ("bytes", "image_bytes", "video_bytes", "image", "video", "content", "jpg", "png", "mp4"),
    "url": ("url", "image_url", "video_url", "uri", "contenturl", "videourl", "link"),
    "text": ("text", "content", "document", "body"),
    "caption": ("caption", "text", "txt", "alt", "alt_text", "title", "description"),
}

_Columns = tuple[str, str, str | None]  # bytes | url | text, the column that holds it, that of the caption or null


@dataclass(frozen=True)
class Member:
    """One thing in a container. Of `content`, `url`, `text` and `error` one is there, or none: then read the span."""

    name: str
    content: bytes | None = None
    url: str | None = None
    text: str | None = None
    error: RowError | None = None
    offset: int | None = None  # span in a tar
    size: int | None = None
    caption: str | None = None
    metadata: str | None = None  # a JSON object


def members(uri: str, container: str, column: str | None = None, caption_column: str | None = None) -> Iterator[Member]:
    """All members of the file at `uri`. `container`: one of UNPACK's kinds; columns: as there.

    Raises RowError (corrupt_container, unsupported_format, no_column) and OSError, StoreError.
    """
    if container == "webdataset":
        return _samples(uri)
    if container == "captions":
        return _malformed_captions(uri)
    return _cells(uri, container, column, caption_column)


class _Forwards(io.RawIOBase):
    """Chunks as a file that can be read and told, and sought forwards only: all that tarfile needs."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks = chunks
        self._held = memoryview(b"")
        self._at = 0
        self.last = b""  # what was read last

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        while self._at < offset and self._skip(offset - self._at):
            pass
        return self._at

    def read(self, size: int = -1) -> bytes:
        if size > HELD_BYTES + tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"a header of {size} bytes")
        parts: list[memoryview] = []
        left = size
        while left > 0 and self._fill():
            part = self._held[:left]
            parts.append(part)
            self._held = self._held[len(part) :]
            left -= len(part)
        self.last = b"".join(parts)
        self._at += len(self.last)
        return self.last

    def _skip(self, num_bytes: int) -> bool:
        if not self._fill():
            return False
        step = min(num_bytes, len(self._held))
        self._held = self._held[step:]
        self._at += step
        return True

    def _fill(self) -> bool:
        while not self._held:
            chunk = next(self._chunks, None)
            limits.beat()
            if chunk is None:
                return False
            self._held = memoryview(chunk)
        return True


def _samples(uri: str) -> Iterator[Member]:
    """Members of a tar, by the convention of WebDataset: neighbours of one key belong together, the key ends at the
    first dot of the name.
    """
    key: str | None = None
    sample: list[Member] = []
    damage = None
    try:
        for member in _files(uri):
            folder, _, base = member.name.rpartition("/")
            this = f"{folder}/{base.partition('.')[0]}"
            if this != key and sample:
                yield from _told_apart(sample)
                sample = []
            key = this
            sample.append(member)
    except RowError as rejected:
        damage = rejected
    if sample:
        yield from _told_apart(sample)
    if damage is not None:
        raise damage


def _files(uri: str) -> Iterator[Member]:
    """Members of a tar in its order, with their spans.

    webdataset's reader is not enough: it tells no spans, holds each member whole, however large, passes over links and
    over names like `__a__`, decompresses, and takes a damaged header for the end. Its `group_by_keys` leaves out names
    without a dot, stops at a name that comes twice, and imports torch: 1 s and 0.3 GB in every worker that reads.
    """
    stream = _Forwards(storage.read_chunks(uri))
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                if info.isdir():
                    continue
                name = clean_name(info.name)
                if not info.isreg() or info.issparse():
                    yield Member(name, error=RowError("not_a_file", "a link, a device or a sparse file in a tar"))
                    continue
                content = None
                if info.size <= HELD_BYTES:
                    stream.seek(info.offset_data)
                    content = stream.read(info.size)
                    if len(content) < info.size:
                        raise tarfile.ReadError("unexpected end of data")
                yield Member(name, content, offset=info.offset_data, size=info.size)
            # tarfile takes a damaged header, or one of zeros, for the end.
            rest = stream.last
            while rest:
                if rest.strip(b"\0"):
                    raise tarfile.ReadError(f"no header at byte {tar.offset}, and more behind it")
                rest = stream.read(HEAD_BYTES)
    except (tarfile.TarError, ValueError, EOFError) as error:
        if next(storage.read_chunks(uri), b"")[:2] == b"\x1f\x8b":
            raise RowError("unsupported_format", "a compressed tar; decompress it: media are packed already") from None
        raise RowError("corrupt_container", words(error)) from None


def _told_apart(sample: list[Member]) -> Iterator[Member]:
    """Which members of a sample are media, with the caption and the metadata that stand beside them."""
    caption, metadata = None, None
    media: list[Member] = []
    beside = False
    for member in sample:
        extension = member.name.rpartition(".")[2].lower()
        if member.error is not None:
            media.append(member)
        elif extension == "txt" and member.content is not None:
            caption = clean(member.content.decode(errors="replace"), MAX_CAPTION_CHARS).strip()
        elif extension == "json" and member.content is not None:
            metadata = member.content
        elif extension in _COMPANIONS and sniff((member.content or b"")[:HEAD_BYTES])[0] == "unknown":
            beside = True
        else:
            media.append(member)
    text, fields = _fields(metadata)
    if not media and (caption is not None or metadata is not None or beside):
        error = RowError("no_medium", "a caption or metadata, and no image or video of this key")
        media = [Member(sample[0].name, error=error)]
    for member in media:
        yield Member(
            member.name,
            member.content,
            error=member.error,
            offset=member.offset,
            size=member.size,
            caption=caption or text,
            metadata=fields,
        )


def _fields(document: bytes | None) -> tuple[str | None, str | None]:
    """A sample's JSON -> its caption and itself on one line; (null, null) where it is none."""
    if document is None:
        return None, None
    try:
        fields = json.loads(document)
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(fields, dict):
        return None, None
    caption = fields.get("caption")
    said = clean(caption, MAX_CAPTION_CHARS).strip() if isinstance(caption, str) else ""
    return said or None, _json(fields)


def _json(fields: dict[str, Any]) -> str | None:
    """The fields on one line; null where they are nested too deep."""
    try:
        return json.dumps(clean_fields(fields), default=str, sort_keys=True)
    except RecursionError:
        return None


def _cells(uri: str, container: str, column: str | None, caption_column: str | None) -> Iterator[Member]:
    """Members of a table: one per row, from the column that holds bytes, a URL or a text."""
    seen: set[str] = set()
    chosen: _Columns | None = None
    waiting = list[tuple[int, dict[str, Any]]]()  # until a row has what is looked for
    unfit: RowError | None = None
    for number, row in enumerate(_rows(uri)):
        if isinstance(row, RowError):
            yield _malformed(uri, f"{number:09d}", row.columns["reject_detail"])
            continue
        waiting.append((number, row))
        if chosen is None:
            try:
                chosen = _chosen(list(row), row, container, column, caption_column)
            except RowError as error:
                unfit = unfit or error
                if len(waiting) < _LOOKED_AT:
                    continue
                break
        yield from _of_rows(waiting, chosen, seen)
        waiting = []
    if waiting and unfit is not None:
        raise unfit


def _of_rows(rows: list[tuple[int, dict[str, Any]]], columns: _Columns, seen: set[str]) -> Iterator[Member]:
    kind, name, said = columns
    for number, row in rows:
        value = row.get(name)
        caption = row.get(said) if said else None
        others = {key: each for key, each in row.items() if key not in (name, said) and not _is_bytes(each)}
        found: dict[str, Any] = {
            "caption": clean(caption, MAX_CAPTION_CHARS) if isinstance(caption, str) else None,
            "metadata": _json(others) if others else None,
        }
        if kind == "bytes":
            value = value.get("bytes") if isinstance(value, dict) else value
            empty = None if value else RowError("empty_file", f"no bytes in column {name}")
            yield Member(f"{name}:{number:09d}", value, error=empty, size=len(value or b""), **found)
        elif kind == "text":
            text = clean(value) if isinstance(value, str) and value.strip() else None
            empty = None if text else RowError("empty_file", f"no text in column {name}")
            yield Member(f"{number:09d}", text=text, error=empty, **(found | {"caption": None}))
        elif not isinstance(value, str) or not value.strip():
            yield Member(f"{number:09d}", error=RowError("bad_url", f"no URL in column {name}"), **found)
        elif (url := clean_name(value.strip())) not in seen:
            seen.add(url)
            yield Member(url, url=url, **found)


def _is_bytes(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, dict) and any(isinstance(v, bytes) for v in value.values()))


def _chosen(
    names: list[str], row: dict[str, Any], container: str, column: str | None, caption_column: str | None
) -> _Columns:
    """Raises RowError with the columns there are."""
    kinds = {"parquet": ("bytes", "url"), "urls": ("url",), "text": ("text",)}[container]
    there = {name.lower(): name for name in reversed(names)}
    known = f"its columns are {', '.join(names)}"
    for wanted, field in ((column, "column"), (caption_column, "caption_column")):
        if wanted is not None and wanted not in names:
            raise RowError("no_column", f"no column {wanted!r} ({known}); correct sources.N.{field}")
    if column is not None:
        kind = kinds[0] if len(kinds) == 1 or _is_bytes(row.get(column)) else kinds[1]
        found = (kind, column)
    else:
        fits = [
            (kind, there[name])
            for kind in kinds
            for name in _COLUMNS[kind]
            if name in there and (kind != "bytes" or _is_bytes(row[there[name]]))
        ]
        if not fits:
            raise RowError("no_column", f"none holds {' or '.join(kinds)} ({known}); name it in sources.N.column")
        found = fits[0]
    said = caption_column
    if said is None and found[0] != "text":
        said = next((there[name] for name in _COLUMNS["caption"] if name in there and there[name] != found[1]), None)
    return (*found, said)


def _rows(uri: str) -> Iterator[dict[str, Any] | RowError]:
    """Rows of a .parquet, .jsonl, .csv, .tsv or .txt (one URL a line; # begins a comment), by the name's extension."""
    extension = uri.rpartition(".")[2].lower()
    if extension == "parquet":
        yield from _parquet_rows(uri)
        return
    with io.TextIOWrapper(_file(uri), encoding="utf-8-sig", errors="replace", newline="") as text:
        if extension in ("csv", "tsv"):
            yield from lines.csv_rows(lines.bounded(text), "," if extension == "csv" else "\t")
        elif extension == "jsonl":
            yield from lines.json_rows(lines.bounded(text))
        else:
            yield from (
                {"url": line.strip()} for line in lines.bounded(text) if line.strip() and not line.startswith("#")
            )


def _file(uri: str) -> IO[bytes]:
    return io.BufferedReader(_Chunks(storage.read_chunks(uri)))


def _malformed_captions(uri: str) -> Iterator[Member]:
    with _file(uri) as file:
        malformed = (
            (number, found) for number, found in lines.captions(lines.bounded(file)) if isinstance(found, RowError)
        )
        for name, detail in lines.told(malformed):
            yield _malformed(uri, name, detail)


def _malformed(uri: str, name: str, detail: str) -> Member:
    """Its identity is its place and what is wrong there, so that a line that is malformed in another way is told."""
    identity = content_id([b"malformed:", f"{uri}\n{name}\n{detail}".encode(errors="replace")])
    return Member(name, error=RowError("malformed_line", detail, media_id=identity, file_id=identity))


def _parquet_rows(uri: str) -> Iterator[dict[str, Any]]:
    filesystem, path = storage.filesystem(uri)
    try:
        with filesystem.open_input_file(path) as stream, pq.ParquetFile(stream) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                yield from batch.to_pylist()
    # Of a damaged file; cells that are no UTF-8, or dates of no year, are ValueError or OverflowError in to_pylist().
    except (pa.ArrowNotImplementedError, ValueError, OverflowError) as error:
        raise RowError("corrupt_container", words(error)) from None


class _Chunks(io.RawIOBase):
    """Chunks as a file, for BufferedReader."""

    def __init__(self, chunks: Iterator[bytes]):
        self._file = _Forwards(chunks)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def names(uri: str, container: str, column: str | None, caption_column: str | None) -> list[str]:
    """The names of all members, up to where the container is damaged."""
    found: list[str] = []
    try:
        for member in members(uri, container, column, caption_column):
            found.append(member.name)
    except (RowError, OSError, pa.ArrowException):
        pass
    return found
