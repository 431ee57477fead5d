"""Which medium a worker has at hand, written where the worker's death leaves it: who takes over knows the guilty one.

A file of one page, mapped into memory and renewed at each medium without a system call. A process that opens the file
of one that died adds the medium at hand to the deaths beside it. A medium that hung is refused from then on; one
that was at hand at another death, only at the second: a lost machine takes along what it happens to be at. Where none
was at hand the death is the whole block's, and a block is refused at the second, too.
"""

import hashlib
import mmap
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pyarrow as pa

from tokenmill.storage import scratch

LIVES = 2  # workers that a medium or a block may cost when none of them hung
_PAGE_BYTES = mmap.PAGESIZE
_DIGEST_BYTES = 16
_NOTE = "at_hand"
_KEY = ("media_id", "uri", "member")
_KILLED = slice(1 + _DIGEST_BYTES, 9 + _DIGEST_BYTES)
_IN_BLOCK = 9 + _DIGEST_BYTES
_BLOCK = slice(_IN_BLOCK + 1, _IN_BLOCK + 1 + _DIGEST_BYTES)


class BlockRefusedError(Exception):
    """Workers died over this block, and nobody knows of which row: it is to be tried row by row."""


def worker_notes(folder: str) -> "Notes":
    """The notes of the worker whose folder this is; its temporary files stand there, too, none of those before it."""
    os.makedirs(folder, 0o700, exist_ok=True)
    scratch.use(os.path.join(folder, "files"))
    return Notes(os.path.join(folder, _NOTE))


def is_held(folder: str) -> bool:
    """The worker whose folder this is has a medium at hand, or had one when it died."""
    with suppress(FileNotFoundError), open(os.path.join(folder, _NOTE), "rb") as file:
        return file.read(1) == b"\x01"
    return False


def hung(folder: str) -> bool:
    """The worker whose folder this is was ended by its watchdog."""
    with suppress(FileNotFoundError):
        return os.path.getsize(os.path.join(folder, _NOTE)) > _PAGE_BYTES
    return False


class Notes:
    """The note of one worker at `path`, and the deaths of those before it.

    The page: 1 where a medium is at hand, its digest, the number of processes that the machine had killed for memory
    when the worker began, 1 where a block is at work, its digest. What the watchdog says of a hang stands behind the
    page.
    """

    def __init__(self, path: str):
        self._deaths: defaultdict[bytes, Counter[str]] = defaultdict(Counter)
        self._path, self._record = path, f"{path}.deaths"
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._bury(os.pread(file, _PAGE_BYTES + 1, 0))
            os.ftruncate(file, 0)
            os.ftruncate(file, _PAGE_BYTES)
            self._page = mmap.mmap(file, _PAGE_BYTES)
        finally:
            os.close(file)
        self._page[_KILLED] = _num_killed().to_bytes(8, "little")
        self._stage, self._columns = 0, list[pa.ChunkedArray]()

    def last_words(self) -> int:
        """A file descriptor whose writes tell the successor that this process hung."""
        file = os.open(self._path, os.O_WRONLY)
        os.lseek(file, _PAGE_BYTES, os.SEEK_SET)
        return file

    def at_work(self, stage: int, table: pa.Table) -> None:
        """Rows are those of `table` from now on, as the stage of this number has them."""
        self._stage = stage
        self._columns = [table[name] for name in _KEY if name in table.column_names]

    def take(self, row: int, part: int) -> str | None:
        """This medium is at hand now; or the reason why it may not be, for what it did before."""
        digest = _digest([str(self._stage), str(part), *(str(column[row]) for column in self._columns)])
        if deaths := self._deaths.get(digest):
            if deaths["timed_out"]:
                return "timed_out"
            if deaths.total() >= LIVES:
                return "out_of_memory" if deaths["out_of_memory"] else "worker_died"
        self._page[1 : 1 + _DIGEST_BYTES] = digest
        self._page[0] = 1
        return None

    @contextmanager
    def block(self, table: pa.Table) -> Iterator[None]:
        """While inside, these rows are at work. Raises BlockRefusedError where workers died of it before."""
        digest = _digest([str(value) for name in _KEY if name in table.column_names for value in table[name]])
        if self._deaths[digest].total() >= LIVES:
            raise BlockRefusedError(f"{LIVES} workers died over these {table.num_rows} rows")
        self._page[_BLOCK] = digest
        self._page[_IN_BLOCK] = 1
        try:
            yield
        finally:
            self._page[_IN_BLOCK] = 0

    def lasting(self, name: str, count: int) -> memoryview:
        """Whole numbers, 0 at first, that the worker that takes over from this one goes on with."""
        size = 8 * count
        file = os.open(f"{self._path}.{name}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(file, size)
            return memoryview(mmap.mmap(file, size)).cast("q")
        finally:
            os.close(file)

    def release(self) -> None:
        """Nothing is at hand any more."""
        self._page[0] = 0

    def _bury(self, page: bytes) -> None:
        """Add to the deaths what the process before this one had at hand, or at work where nothing was."""
        with open(self._record, "a+b") as record:
            is_held = page[:1] == b"\x01"
            if is_held or page[_IN_BLOCK : _IN_BLOCK + 1] == b"\x01":
                was_killed = _num_killed() > int.from_bytes(page[_KILLED], "little")
                why = "out_of_memory" if was_killed else "worker_died"
                why = "timed_out" if len(page) > _PAGE_BYTES else why
                record.write(page[1 : 1 + _DIGEST_BYTES] if is_held else page[_BLOCK])
                record.write(why.encode().ljust(16))
                record.flush()
            record.seek(0)
            while line := record.read(_DIGEST_BYTES + 16):
                self._deaths[line[:_DIGEST_BYTES]][line[_DIGEST_BYTES:].decode().strip()] += 1


def _digest(words: list[str]) -> bytes:
    joined = "\0".join(words).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=_DIGEST_BYTES).digest()


def _num_killed() -> int:
    """Processes that the kernel of this machine has killed for memory so far; 0 where it does not say."""
    try:
        with open("/proc/vmstat") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0
