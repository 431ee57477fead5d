"""Limits for each medium, enforced from outside the decoder: of time, of memory, and of workers that it may cost.

Decoders hang inside C, where no Python exception arrives. A watchdog thread that needs no interpreter lock (that of
`faulthandler`) ends the process instead. Memory beyond the limit is refused by the kernel (RLIMIT_DATA, on Linux), so
that a decoder fails in the row at hand and not the machine. Whoever takes over from a worker that died knows which
medium it had at hand (at_hand.py) and rejects that one alone. Nothing is limited in a process that did not call
`set_limits`.
"""

import errno
import faulthandler
import os
import resource
import time
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa

from tokenmill.stages.table.at_hand import LIVES, Notes
from tokenmill.stages.table.rows import RowError

_RENEW_EVERY_S = 0.5
_LEAST_ROWS = 10  # whose time a stage's call has: its first one may compile a model
_STATM, _DATA_FIELD = "/proc/self/statm", 5  # what RLIMIT_DATA is held against, in pages
_CV2_NO_MEMORY = -4
_AT_HAND = {
    "timed_out": "no sign of life for {timeout_s:g} s",
    "out_of_memory": f"{LIVES} workers that had it at hand were killed for memory",
    "worker_died": f"{LIVES} workers that had it at hand died",
}


class Limits(NamedTuple):
    """Of one medium: `timeout_s` without a sign of life, `memory_bytes` more than before it; null: none."""

    timeout_s: float | None = None
    memory_bytes: int | None = None


_limits = Limits()
_notes: Notes | None = None
_renewed = 0.0
_words: int | None = None  # where the watchdog writes
_statm: int | None = None
_num_open = 0


def set_limits(limits: Limits, notes: Notes | None = None) -> None:
    """Limit the media of this process from now on, and note which one is at hand."""
    global _limits, _notes, _words, _statm
    if limits.timeout_s is not None and (_words is None or notes is not _notes):
        _words = os.open(os.devnull, os.O_WRONLY) if notes is None else notes.last_words()
    if limits.memory_bytes is not None and _statm is None and os.path.exists(_STATM):
        _statm = os.open(_STATM, os.O_RDONLY)
    _limits, _notes = limits, notes


def at_work(stage: int, table: pa.Table) -> None:
    """Rows are those of `table` from now on, as the stage of this number in its chain has them."""
    if _notes is not None:
        _notes.at_work(stage, table)


def lasting(name: str, count: int) -> MutableSequence[int] | memoryview:
    """Whole numbers, 0 at first, with which whoever takes over from this worker goes on (at_hand.py)."""
    return [0] * count if _notes is None else _notes.lasting(name, count)


@contextmanager
def call(num_rows: int) -> Iterator[None]:
    """A stage's call. What is not `medium` in it, such as a model, has the time of its rows together, ten at least."""
    if _limits.timeout_s is None or _words is None:
        yield
        return
    faulthandler.dump_traceback_later(_limits.timeout_s * max(num_rows, _LEAST_ROWS), exit=True, file=_words)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def medium(row: int | None = None, part: int = 0) -> Iterator[None]:
    """The time in which one medium is read, or decoded and scored: of `row` in the stage's table, and of its parts the
    one with this number; null: several at once.

    Raises RowError: out_of_memory; and before anything is done timed_out, worker_died and out_of_memory where it was
    at hand when workers ended.
    """
    global _renewed, _num_open
    if _notes is not None and row is not None and (reason := _notes.take(row, part)):
        raise RowError(reason, _AT_HAND[reason].format(timeout_s=_limits.timeout_s))
    _renewed = 0.0
    _num_open += 1
    beat()
    before = _limit_memory()
    try:
        yield
    except Exception as error:
        if rejected := refused_memory(error):
            raise rejected from error
        raise
    finally:
        _num_open -= 1
        if before is not None:
            resource.setrlimit(resource.RLIMIT_DATA, before)
        if _limits.timeout_s is not None:
            faulthandler.cancel_dump_traceback_later()
        if _notes is not None:
            _notes.release()


def beat() -> None:
    """A sign of life inside `medium`, such as one more frame; costs nothing when the last was a moment ago, and does
    nothing outside.
    """
    global _renewed
    if not _num_open:
        return
    now = time.monotonic()
    if now - _renewed >= _RENEW_EVERY_S:
        _renewed = now
        if _limits.timeout_s is not None and _words is not None:
            faulthandler.dump_traceback_later(_limits.timeout_s, exit=True, file=_words)


def refused_memory(error: BaseException) -> RowError | None:
    """The rejection of the medium at hand, where `error` or what it came from tells of memory beyond the limit."""
    cause: BaseException | None = error if _num_open and _statm is not None and _limits.memory_bytes else None
    while cause is not None:
        is_refusal = isinstance(cause, MemoryError) or getattr(cause, "errno", None) == errno.ENOMEM
        if is_refusal or (type(cause).__module__ == "cv2" and getattr(cause, "code", None) == _CV2_NO_MEMORY):
            return RowError("out_of_memory", f"it takes more than {_limits.memory_bytes} bytes")
        cause = cause.__cause__ or cause.__context__
    return None


def _limit_memory() -> tuple[int, int] | None:
    """Let the kernel refuse what is more than the limit from now on; the limits of before, null where it cannot."""
    if _statm is None or _limits.memory_bytes is None:
        return None
    before = resource.getrlimit(resource.RLIMIT_DATA)
    now = int(os.pread(_statm, 200, 0).split()[_DATA_FIELD]) * resource.getpagesize()
    most = now + _limits.memory_bytes
    if before[1] != resource.RLIM_INFINITY:
        most = min(most, before[1])
    resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
    return before
