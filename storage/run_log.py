"""log.jsonl of a run: one line of figures per logged step, appended as training goes, readable while it does.

An object store cannot append: there the whole log, some 200 bytes a line, is put again at most every ten seconds. A
resumed run drops the lines behind its checkpoint, so that no step stands twice.
"""

import json
import time
from collections.abc import Sequence
from typing import Any

from tokenmill import storage
from tokenmill.storage.errors import TrainingError

FILE_NAME = "log.jsonl"
_PUT_EVERY_S = 10.0
_SHOWN_BYTES = 80
_KINDS: dict[str, tuple[type, ...]] = {"step": (int,), "kind": (str,)}  # all others are numbers

Record = dict[str, Any]


def read_log(run_uri: str, *keys: str) -> list[Record]:
    """All whole lines so far; a line that a crash tore is left out. Raises TrainingError for a line that is no record
    with these `keys`.
    """
    return LogTail(run_uri).fresh(*keys)


class TrainLog:
    """Writes the log of a run; one writer at a time."""

    def __init__(self, run_uri: str, done_steps: int, *keys: str):
        self._uri = storage.join(run_uri, FILE_NAME)
        kept = [record for record in read_log(run_uri, *keys) if record["step"] <= done_steps]
        self._text = "".join(json.dumps(record) + "\n" for record in kept)
        self._put_at_s = 0.0
        storage.write_bytes(self._uri, self._text.encode())
        self._file = None if storage.is_remote(self._uri) else open(self._uri, "a", buffering=1)  # noqa: SIM115

    def append(self, record: Record) -> None:
        """Add a line."""
        line = json.dumps(record) + "\n"
        if self._file is not None:
            self._file.write(line)
            return
        self._text += line
        if time.monotonic() - self._put_at_s > _PUT_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Make every line visible."""
        if self._file is not None:
            self._file.flush()
            return
        storage.write_bytes(self._uri, self._text.encode())
        self._put_at_s = time.monotonic()


class LogTail:
    """Reads a log that grows."""

    def __init__(self, run_uri: str):
        self._uri = storage.join(run_uri, FILE_NAME)
        self._offset = 0
        self._last = b""  # the line before the offset

    def fresh(self, *keys: str) -> list[Record]:
        """Lines written since the last call; from the start again once a resumed run has begun the log anew."""
        if not storage.exists(self._uri):
            return []
        filesystem, path = storage.filesystem(self._uri)
        with filesystem.open_input_file(path) as stream:
            size = stream.size()
            start = self._offset - len(self._last)
            stream.seek(min(start, size))
            data = stream.read(max(0, size - start))
            if data.startswith(self._last):
                data = data[len(self._last) :]
            else:
                self._offset, self._last = 0, b""
                stream.seek(0)
                data = stream.read(size)
        whole, newline, _ = data.rpartition(b"\n")
        if newline:
            self._offset += len(whole) + 1
            self._last = whole[whole.rfind(b"\n") + 1 :] + newline
        return [self._record(line, keys) for line in whole.splitlines() if line.endswith(b"}")]

    def _record(self, line: bytes, keys: Sequence[str]) -> Record:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        values = record if isinstance(record, dict) else {}
        if not all(isinstance(values.get(name), _KINDS.get(name, (int, float))) for name in ("step", *keys)):
            shown = line[:_SHOWN_BYTES].decode(errors="replace")
            raise TrainingError(
                f"{self._uri}: damaged, a line is {shown!r}; delete it, and the training goes on without what it told"
            )
        return values
