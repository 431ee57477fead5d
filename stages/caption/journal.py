"""Answers kept as they come, below the root: who does a dead worker's media again, or a dead run's, finds them there.

A worker writes a file for each table of media that it works on, named by its last medium; the conductor deletes it once
that medium's row is committed. On a disk each answer is one append, which a kill -9 leaves whole. A store has no
append: there answers go out in parts, the next as soon as the one before is written, and a kill loses what came since.
"""

import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from tokenmill import storage

_FOLDER = "answers"  # below a root
_PART_EVERY_S = 0.5  # to a store, at most; each is a request that is paid for
_ENDING = ".jsonl"


def key_of(media_id: str, prompt: str) -> str:
    """What an answer belongs to, below the fingerprint of its captioner."""
    return hashlib.blake2b(f"{media_id}\0{prompt}".encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


class Journal:
    """Of one captioner, at `uri`; none is kept where that is empty."""

    def __init__(self, uri: str):
        self._uri = uri
        self._read: dict[str, dict[str, Any]] = {}  # answers by the part of a store that they were read from

    def found(self, keys: Collection[str]) -> dict[str, Any]:
        """The answers to these keys that workers before, or other ones, have left."""
        names = [name for name in storage.list_names(self._uri) if name.endswith(_ENDING)] if self._uri else []
        known = {name: self._read.get(name) or self._answers_in(name) for name in names}
        if storage.is_remote(self._uri):  # files on a disk grow
            self._read = known
        wanted = set(keys)
        return {key: each for answers in known.values() for key, each in answers.items() if key in wanted}

    @contextmanager
    def block(self, media_id: str) -> Iterator["Block"]:
        """Where the answers to a table go whose last medium has this id; all of them are written at its end."""
        block = (_Parts if storage.is_remote(self._uri) else _File if self._uri else Block)(
            storage.join(self._uri, f"{media_id}-{uuid.uuid4().hex[:8]}")
        )
        try:
            yield block
        finally:
            block.close()

    def _answers_in(self, name: str) -> dict[str, Any]:
        """Of a line that was cut off nothing is known: its medium is asked again."""
        made = {}
        with suppress(FileNotFoundError):
            for line in storage.read_bytes(storage.join(self._uri, name)).splitlines():
                with suppress(ValueError, TypeError):
                    key, columns = json.loads(line)
                    made[str(key)] = columns
        return made


def answers_of(root: str, fingerprint: str) -> str:
    """Where the answers of a captioner stand that are not committed yet."""
    return storage.join(root, _FOLDER, fingerprint)


def last_answer_s(uri: str) -> float | None:
    """Seconds since the newest of the answers that stand there; null where none does, or nobody says."""
    filesystem, path = storage.filesystem(uri)
    try:
        found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    except OSError:
        return None
    times = [info.mtime.timestamp() for info in found if info.mtime is not None]
    return max(0.0, time.time() - max(times)) if times else None


def clear_answers(uri: str, media_ids: Collection[str]) -> None:
    """Delete the files of tables that are committed: those whose last medium is one of these."""
    done = set(media_ids)
    for name in storage.list_names(uri):
        if name.split("-")[0] in done:
            storage.delete_file(storage.join(uri, name))


def clear_all_answers(root: str) -> None:
    """Delete the answers of all captioners that are not committed."""
    if storage.list_names(uri := storage.join(root, _FOLDER)):
        storage.delete_folder(uri)


class Block:
    """Keeps nothing."""

    def __init__(self, uri: str):
        self._uri = uri

    def add(self, key: str, columns: dict[str, Any]) -> None:
        """One more answer."""

    def close(self) -> None:
        """No more will come."""


class _File(Block):
    """On a disk."""

    _file: int | None = None

    def add(self, key: str, columns: dict[str, Any]) -> None:
        if self._file is None:
            path = Path(f"{self._uri}{_ENDING}")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(self._file, _line(key, columns))

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)


class _Parts(Block):
    """In a store, by a thread."""

    def __init__(self, uri: str):
        super().__init__(uri)
        self._lines, self._num_parts = list[bytes](), 0
        self._has_more, self._is_closing, self._lock = threading.Event(), threading.Event(), threading.Lock()
        self._failed: Exception | None = None
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()

    def add(self, key: str, columns: dict[str, Any]) -> None:
        with self._lock:
            self._lines.append(_line(key, columns))
        self._has_more.set()

    def close(self) -> None:
        """Raises what writing raised."""
        self._is_closing.set()
        self._has_more.set()
        self._thread.join()
        if self._failed is not None:
            raise self._failed

    def _write(self) -> None:
        try:
            while not self._is_closing.is_set() or self._lines:
                self._has_more.wait()
                self._has_more.clear()
                with self._lock:
                    lines, self._lines = self._lines, []
                if lines:
                    storage.write_bytes(f"{self._uri}-{self._num_parts}{_ENDING}", b"".join(lines))
                    self._num_parts += 1
                self._is_closing.wait(_PART_EVERY_S)
        except Exception as error:  # raised where the table ends
            self._failed = error


def _line(key: str, columns: dict[str, Any]) -> bytes:
    return json.dumps([key, columns]).encode() + b"\n"
