"""Who may ask a host, and when: so many requests at once, so far apart, none while the host asked to be left alone."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tokenmill.stages.table.rows import RowError

_REMEMBERED_HOSTS = 4096


class _Host:
    def __init__(self) -> None:
        self.waiting = 0
        self.running = 0
        self.next_at = 0.0
        self.paused_until = 0.0

    def is_idle(self, now: float) -> bool:
        return not self.waiting and not self.running and max(self.next_at, self.paused_until) <= now


class Turns:
    """Turns at hosts, for the threads of one process."""

    def __init__(self, at_once: int, longest_pause_s: float):
        self._at_once = at_once
        self._longest_pause_s = longest_pause_s
        self._hosts: dict[str, _Host] = {}
        self._changed = threading.Condition()

    @contextmanager
    def take(self, host: str, delay_s: float) -> Iterator[None]:
        """Wait for a turn at `host`, and hold it; the next one starts `delay_s` seconds after this one at the earliest.

        Raises RowError rate_limited when the host asked for a pause that ends later than the longest pause from now.
        """
        with self._changed:
            state = self._host(host)
            state.waiting += 1
            try:
                self._wait(host, state)
                state.running += 1
                state.next_at = time.monotonic() + delay_s
            finally:
                state.waiting -= 1
        try:
            yield
        finally:
            with self._changed:
                state.running -= 1
                self._changed.notify_all()

    def pause(self, host: str, pause_s: float) -> None:
        """Nobody asks `host` for the next `pause_s` seconds."""
        with self._changed:
            state = self._host(host)
            state.paused_until = max(state.paused_until, time.monotonic() + pause_s)

    def _wait(self, host: str, state: _Host) -> None:
        while True:
            now = time.monotonic()
            if state.paused_until - now > self._longest_pause_s:
                raise RowError("rate_limited", f"{host} asks to be left alone for {state.paused_until - now:.0f} s")
            start_at = max(state.next_at, state.paused_until)
            if state.running < self._at_once and start_at <= now:
                return
            self._changed.wait(start_at - now if start_at > now else None)

    def _host(self, host: str) -> _Host:
        if len(self._hosts) >= _REMEMBERED_HOSTS:
            now = time.monotonic()
            self._hosts = {name: state for name, state in self._hosts.items() if not state.is_idle(now)}
        return self._hosts.setdefault(host, _Host())
