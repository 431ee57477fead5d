"""A time limit for each medium, enforced from outside the decoder: a worker without a sign of life is ended.

Decoders hang inside C, where no Python exception arrives. A watchdog thread that needs no interpreter lock (that of
`faulthandler`) ends the process instead; the rows it held are tried again one by one, and the guilty one is rejected as
timed_out (pipeline/flow/flow.py). Nothing is limited in a process that did not call `set_limit`.
"""

import faulthandler
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

_RENEW_EVERY_S = 0.5

_limit_s: float | None = None
_renewed = 0.0
_nowhere: int | None = None
_num_open = 0


def set_limit(limit_s: float | None) -> None:
    """End this process when a medium shows no sign of life for `limit_s` seconds; null: never."""
    global _limit_s, _nowhere
    _limit_s = limit_s
    if limit_s is not None and _nowhere is None:
        _nowhere = os.open(os.devnull, os.O_WRONLY)


@contextmanager
def medium() -> Iterator[None]:
    """The time in which one medium is read, or decoded and scored."""
    global _renewed, _num_open
    _renewed = 0.0
    _num_open += 1
    beat()
    try:
        yield
    finally:
        _num_open -= 1
        if _limit_s is not None:
            faulthandler.cancel_dump_traceback_later()


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
        if _limit_s is not None and _nowhere is not None:
            faulthandler.dump_traceback_later(_limit_s, exit=True, file=_nowhere)


def idle_s() -> float:
    """Seconds since the last sign of life."""
    return time.monotonic() - _renewed
