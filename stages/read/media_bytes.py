"""Where the bytes of a curated medium are: a file, a span of a tar, a row of a Parquet file, or what a URL gave.

A place is the columns uri, member, offset_bytes, size_bytes and file_id of `media`. What was fetched from a URL stands
under the root by its content id, because the web gives no second answer that is sure to be the same.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow.parquet as pq

from tokenmill import storage
from tokenmill.stages.table import limits
from tokenmill.stages.table.rows import RowError
from tokenmill.storage import scratch

PLACE = ("uri", "member", "offset_bytes", "size_bytes", "file_id")
WEB = ("http://", "https://")
_CELLS_AT_ONCE = 64


def fetched_uri(fetched: str, file_id: str) -> str:
    """Where the bytes with this content id stand under `fetched`, the folder of what URLs gave."""
    return storage.join(fetched, file_id[:2], file_id)


class Places:
    """Opens media one after the other; remembers how far it read in a Parquet file, so keep one per worker.

    `fetched`: the folder under the root with what URLs gave. All methods raise OSError, pyarrow's errors and StoreError
    for what cannot be read, RowError for a row that is no longer there.
    """

    def __init__(self, fetched: str):
        self._fetched = fetched
        self._cells: _Cells | None = None

    def chunks(self, place: Mapping[str, Any]) -> Iterator[bytes]:
        """The medium's bytes, a few MiB at a time; those of a Parquet row at once."""
        uri, member, offset = place["uri"], place["member"], place["offset_bytes"]
        if member is None:
            yield from storage.read_chunks(uri)
        elif offset is not None:
            yield from storage.read_chunks(uri, offset, place["size_bytes"])
        elif member.startswith(WEB):
            yield from storage.read_chunks(fetched_uri(self._fetched, place["file_id"]))
        elif storage.is_remote(member):
            yield from storage.read_chunks(member)
        else:
            yield self._cell(uri, member)

    def read(self, place: Mapping[str, Any]) -> bytes:
        """All bytes of the medium."""
        if place["member"] is None:
            return storage.read_bytes(place["uri"])
        return b"".join(self.chunks(place))

    @contextmanager
    def local_file(self, place: Mapping[str, Any]) -> Iterator[str]:
        """The path of a local file with the medium's bytes: itself when it is one, else a temporary copy."""
        if place["member"] is None and not storage.is_remote(place["uri"]):
            yield storage.absolute(place["uri"])
            return
        handle, path = tempfile.mkstemp(prefix="tokenmill-", dir=scratch.folder())
        try:
            with os.fdopen(handle, "wb") as spool:
                for chunk in self.chunks(place):
                    limits.beat()
                    spool.write(chunk)
            yield path
        finally:
            os.unlink(path)

    def _cell(self, uri: str, member: str) -> bytes:
        column, _, number = member.rpartition(":")
        cells = self._cells
        if cells is None or (cells.uri, cells.column) != (uri, column) or cells.next_row > int(number):
            cells = self._cells = _Cells(uri, column)
        return cells.at(int(number))


class _Cells:
    """One column of a Parquet file, read forwards."""

    def __init__(self, uri: str, column: str):
        self.uri, self.column, self.next_row = uri, column, 0
        filesystem, path = storage.filesystem(uri)
        self._file = pq.ParquetFile(filesystem.open_input_file(path))
        self._batches = self._file.iter_batches(_CELLS_AT_ONCE, columns=[column])
        self._batch: list[Any] = []
        self._start = 0

    def at(self, row: int) -> bytes:
        while row >= self._start + len(self._batch):
            self._start += len(self._batch)
            try:
                self._batch = next(self._batches).column(0).to_pylist()
            except StopIteration:
                raise _changed() from None
        self.next_row = row
        value = self._batch[row - self._start]
        value = value.get("bytes") if isinstance(value, dict) else value  # images as Hugging Face writes them
        if not isinstance(value, bytes):
            raise _changed()
        return value


def _changed() -> RowError:
    return RowError("changed", "the file no longer has this row; refresh the sources")
