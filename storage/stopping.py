"""Ctrl-C, and SIGTERM and SIGUSR1, which Slurm and Kubernetes send -> KeyboardInterrupt in the main thread, and what is
said then.

The first signal lets a command end in order; a second one, a moment later, ends it at once. What is said does not wait
for the end: workers on other machines may take seconds. Libraries take signals over (Ray both, at its start), so
`kept` gives them back.
"""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SAY_AFTER_S = 1.0
_SAME_WITHIN_S = 1.0  # timeout(1) and others send one to the process and one to its group
_received: list[signal.Signals] = []  # by this process; libraries raise KeyboardInterrupt anew, without a word of it


def is_given_time() -> bool:
    """Whether the signal that this process was sent leaves it time: all but Ctrl-C, behind which somebody waits."""
    return bool(_received) and _received[-1] != signal.SIGINT


class Stop:
    """The end of a command by a signal. `say` tells of it, once."""

    def __init__(self, say: Callable[[signal.Signals], None]):
        self.received: signal.Signals | None = None
        self.is_over = False  # nothing is at work any more: a signal ends the process at once
        self._say, self._lock, self._is_said, self._at = say, threading.Lock(), False, 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While inside, signals come here; after one they still do, for the interpreter's end takes its time."""
        before = {which: signal.getsignal(which) for which in SIGNALS}
        for which, handler in before.items():
            if handler is not signal.SIG_IGN:  # of nohup, or of a shell for what runs behind it
                signal.signal(which, self._receive)
        try:
            yield
        finally:
            if self.received is None:
                _restore(before)

    def tell(self) -> None:
        """Say it, unless it was said."""
        with self._lock:
            if not self._is_said and self.received is not None:
                self._is_said = True
                self._say(self.received)

    def _receive(self, number: int, _: Any) -> None:
        if self.received is None:
            self.received, self._at = signal.Signals(number), time.monotonic()
            if self.is_over:
                try:
                    self.tell()
                finally:
                    os._exit(128 + number)
            late = threading.Timer(_SAY_AFTER_S, self.tell)
            late.daemon = True
            late.start()
            _received.append(self.received)
            raise KeyboardInterrupt
        if time.monotonic() - self._at > _SAME_WITHIN_S:
            os._exit(128 + number)


def leave(code: int) -> NoReturn:
    """End this process as the interpreter does, but for what it does last: it takes Python's handlers of signals away,
    and then frees, for a second, what libraries hold.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # nobody reads it any more
            code = code or 1
    os._exit(code)


@contextmanager
def kept() -> Iterator[None]:
    """Signals go after it to whom they went before, whatever takes them over inside."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {which: signal.getsignal(which) for which in SIGNALS}
    try:
        yield
    finally:
        _restore(before)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for which, handler in handlers.items():
        if handler is not None:  # null: set by no Python, and known to none
            signal.signal(which, handler)
