"""A clock that jumps: what Python imports at its start where this folder stands in PYTHONPATH.

Shifts time.time and time.time_ns by the seconds that stand in the file TOKENMILL_CHAOS_CLOCK, which may change at any
moment; `Datetime` is a datetime by that clock, for modules that are given it (C code does not bear another class in
its place). Not shifted: monotonic clocks, times of files, and what C, C++ and Rust ask of the kernel, such as the times
of commits in the log of a Delta table.
"""

import os
import time
from datetime import datetime

_EVERY_S = 0.1
_file = os.environ.get("TOKENMILL_CHAOS_CLOCK", "")
_time, _time_ns, _monotonic = time.time, time.time_ns, time.monotonic
_offset, _looked = 0, float("-inf")


def _offset_s() -> int:
    global _offset, _looked
    now = _monotonic()
    if now - _looked >= _EVERY_S:
        _looked = now
        try:
            with open(_file) as stream:
                _offset = int(stream.read() or _offset)
        except OSError:
            pass
    return _offset


def _shifted() -> float:
    return _time() + _offset_s()


def _shifted_ns() -> int:
    return _time_ns() + _offset_s() * 1_000_000_000


class Datetime(datetime):
    """Its `now` is shifted."""

    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(_shifted(), tz)


if _file:
    time.time, time.time_ns = _shifted, _shifted_ns
