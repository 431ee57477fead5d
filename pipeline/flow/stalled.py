"""A phase without a result for minutes says what it waits for."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tokenmill.pipeline.reports.terminal import Meter

_LOOKS = 10  # in the time after which it speaks


@contextmanager
def watched(meter: Meter, stall_s: float, waits: Callable[[], str]) -> Iterator[None]:
    """While inside, a note after `stall_s` seconds without a result, and again each time that has doubled."""
    ended = threading.Event()

    def watch() -> None:
        limit_s = stall_s
        while not ended.wait(stall_s / _LOOKS):
            silent_s = meter.progress().silent_s
            if silent_s < stall_s:
                limit_s = stall_s
            elif silent_s >= limit_s:
                limit_s *= 2
                meter.note(f"no result for {silent_s:,.0f} s; {waits()}")

    watching = threading.Thread(target=watch, name="stalled", daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()
