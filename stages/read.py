"""Read listed files once: bytes -> identity, kind, format.

The identity is a hash of the content, never the path: one file at two places is one medium. The kind comes from the
first bytes, never from the name. Images travel on as bytes; a video stays where it is, or, when remote, is copied to a
folder of this worker's while it is hashed, so that it is downloaded once.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pyarrow as pa
from pydantic import Field

from stages.columns import LISTED, MEDIA
from stages.formats import HEAD_BYTES, UNSUPPORTED, extension_fits, sniff
from stages.rows import RowError, replace, without, words
from tokenizer import storage
from tokenizer.identity import Config, content_id

_DOWNLOADS_AT_ONCE = 8  # an object store answers after tens of milliseconds; local disks need no overlap


class ReadConfig(Config):
    """What is read at all."""

    max_image_bytes: int = Field(
        default=1 << 26,
        gt=0,
        description="too small: large scans are rejected as too_many_bytes; too large: a batch of them, held at once, "
        "fills the worker's memory",
    )
    max_video_bytes: int = Field(
        default=1 << 36,
        gt=0,
        description="too small: long videos are rejected as too_many_bytes; too large: one remote video fills the "
        "worker's disk",
    )


class Read:
    """LISTED rows -> all columns of MEDIA (null where not known yet) plus `content`, `path`, `path_is_temporary`.

    `content` holds the bytes of images, `path` the local file of videos. Costs one pass over each file. Rejects:
    empty_file, unreadable (vanished, forbidden, input/output errors), unknown_format, unsupported_format,
    too_many_bytes. A file that could not be read has no content; its identity is a hash of its URI.
    """

    reads = LISTED
    writes = pa.schema(
        [
            *without(MEDIA, "uri", "source_caption", "fingerprint", "run_id"),
            pa.field("content", pa.large_binary()),
            pa.field("path", pa.string()),
            pa.field("path_is_temporary", pa.bool_()),
        ]
    )
    drops: tuple[str, ...] = ()
    rows = "same"

    def __init__(self, config: ReadConfig):
        self._config = config
        self._folder = tempfile.TemporaryDirectory(prefix="tokenmill-read-")  # removed with this worker

    def __call__(self, table: pa.Table) -> pa.Table:
        uris = table["uri"].to_pylist()
        if any(storage.is_remote(uri) for uri in uris):
            with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
                found = list(pool.map(self._read, uris))
        else:
            found = [self._read(uri) for uri in uris]
        values = {name: [row.get(name) for row in found] for name in self.writes.names}
        result = replace(table, self.writes, values)
        order = without(MEDIA, "fingerprint", "run_id").names
        return result.select(order + [name for name in result.column_names if name not in order])

    def _read(self, uri: str) -> dict:
        try:
            return self._identify(uri)
        except (OSError, ValueError, pa.ArrowException) as error:
            nameless = content_id([b"unreadable:", uri.encode()])
            return RowError("unreadable", words(error), media_id=nameless, file_id=nameless, kind="unknown").columns

    def _identify(self, uri: str) -> dict:
        chunks = storage.read_chunks(uri)
        head = b""
        while len(head) < HEAD_BYTES and (chunk := next(chunks, b"")):
            head += chunk
        kind, name = sniff(head[:HEAD_BYTES])
        content, path, temporary = None, None, None
        if kind == "image" and name not in UNSUPPORTED:
            kept = bytearray()
            read = _OnePass(head, chunks, self._config.max_image_bytes, kept.extend)
            file_id = content_id(read)
            content = bytes(kept)
        elif kind == "video" and storage.is_remote(uri):
            path, temporary = self._spool_path(), True
            try:
                with open(path, "wb") as spool:
                    read = _OnePass(head, chunks, self._config.max_video_bytes, spool.write)
                    file_id = content_id(read)
            except BaseException:
                os.unlink(path)
                raise
        else:
            read = _OnePass(head, chunks, self._config.max_video_bytes)
            file_id = content_id(read)
            if kind == "video":
                path, temporary = storage.absolute(uri), False
        found = {
            "media_id": file_id,
            "file_id": file_id,
            "kind": kind,
            "format": name,
            "size_bytes": read.size_bytes,
            "extension_fits": extension_fits(uri, name),
        }
        refusal = _refusal(kind, name, read)
        if refusal is None:
            return {**found, "content": content, "path": path, "path_is_temporary": temporary}
        if path is not None and temporary:
            os.unlink(path)
        return {**found, **refusal.columns}

    def _spool_path(self) -> str:
        handle, path = tempfile.mkstemp(dir=self._folder.name)
        os.close(handle)
        return path


class _OnePass:
    """Iterates over a file's chunks, counts its bytes and hands chunks to `keep` until `limit_bytes` is passed."""

    def __init__(
        self, head: bytes, rest: Iterator[bytes], limit_bytes: int, keep: Callable[[bytes], object] | None = None
    ):
        self._chunks = chain([head], rest)
        self._keep = keep
        self.limit_bytes = limit_bytes
        self.size_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.size_bytes += len(chunk)
            if self._keep is not None and self.size_bytes <= self.limit_bytes:
                self._keep(chunk)
            yield chunk


def _refusal(kind: str, name: str | None, read: _OnePass) -> RowError | None:
    if read.size_bytes == 0:
        return RowError("empty_file", "zero bytes")
    if kind == "unknown":
        return RowError("unknown_format", "the first bytes are those of no known image or video format")
    if name in UNSUPPORTED:
        return RowError("unsupported_format", f"no decoder for {name}")
    if read.size_bytes > read.limit_bytes:
        return RowError("too_many_bytes", f"{read.size_bytes} bytes; the limit is {read.limit_bytes}")
    return None
