"""Several servers that share the load: how many requests each takes at once, which of them rests, which is least busy.

A level is found by watching: it doubles while more answers come back a second, and steps up by an eighth now and then
after that. A server that says it is busy, or times out, halves it; it comes back by eighths to just below where it was.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Sequence

_FIRST = 4  # of a server of which nothing is known
_RISE, _SMALL_RISE = 1.05, 1.02
_LEAST_WINDOW = 16
_UNWANTED_SHARE = 0.25
_LONGEST_WAIT = 64  # windows between two steps up that did not help
_CUT_EVERY_S = 1.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 30.0


class Level:
    """How many requests are in flight at one server."""

    def __init__(self, most: int, first: int = _FIRST):
        self._most, self.limit = most, min(first, most)
        self._before, self._rate = self.limit, 0.0  # the level and rate to beat
        self._is_doubling, self._is_trying = True, True
        self._too_many = 0  # the level at which it was cut
        self._wait, self._num_waited, self._cut_at = 1, 0, 0.0
        self._count, self._num_unwanted, self._started = -self.limit, 0, time.monotonic()

    def answered(self, is_wanted: bool) -> None:
        """One more answer; `is_wanted`: more requests wait for room."""
        self._count += 1
        self._num_unwanted += not is_wanted
        if self._count == 0:
            self._started = time.monotonic()
            self._num_unwanted = 0
        elif self._count >= max(_LEAST_WINDOW, 2 * self.limit):
            if self._num_unwanted <= _UNWANTED_SHARE * self._count:  # else too few requests to tell
                self._judge(self._count / max(time.monotonic() - self._started, 1e-6))
            self._restart()

    def cut(self) -> None:
        """Half as many, once for all that were in flight together."""
        now = time.monotonic()
        if now - self._cut_at > _CUT_EVERY_S:
            self._too_many, self._cut_at = self.limit, now
            self._before = self.limit = max(1, self.limit // 2)
            self._is_doubling = self._is_trying = False
            self._rate, self._wait, self._num_waited = 0.0, min(2 * self._wait, _LONGEST_WAIT), 0
        self._restart()

    def _judge(self, rate: float) -> None:
        if self._is_trying:
            self._is_trying = False
            if rate > self._rate * (_RISE if self._is_doubling else _SMALL_RISE):
                self._before, self._rate, self._wait = self.limit, rate, 1
                self._try(self.limit if self._is_doubling else max(1, self.limit // 8))
            else:
                self.limit, self._is_doubling = self._before, False
                self._wait, self._num_waited = min(2 * self._wait, _LONGEST_WAIT), 0
            return
        step = max(1, self.limit // 8)
        if self.limit + step < self._too_many:  # back to where it was cut, but for one step
            self.limit += step
            return
        self._rate, self._num_waited = rate, self._num_waited + 1
        if self._num_waited >= self._wait:
            self._before, self._too_many = self.limit, 0
            self._try(step)

    def _try(self, more: int) -> None:
        higher = min(self._most, self.limit + more)
        self._is_trying, self.limit = higher > self.limit, higher

    def _restart(self) -> None:
        self._count = -self.limit  # answers of the level before are on their way
        self._started, self._num_unwanted = time.monotonic(), 0


class Server:
    """One address."""

    def __init__(self, url: str, most: int, first: int):
        self.url, self.level, self.in_flight = url.rstrip("/"), Level(most, first), 0
        self.answered_at = self.probed_at = float("-inf")
        self.paused_until = 0.0
        self.probing = asyncio.Lock()
        self._num_failed = 0

    def answered(self) -> None:
        """It gave an answer."""
        self.answered_at, self._num_failed = time.monotonic(), 0

    def rest(self, pause_s: float | None = None) -> None:
        """Ask it nothing for as long as it says, or for twice as long as the last time."""
        if self.paused_until > time.monotonic() and pause_s is None:
            return
        backoff_s = min(_FIRST_PAUSE_S * 2**self._num_failed, _LONGEST_PAUSE_S) * random.uniform(0.75, 1.25)
        self._num_failed = min(self._num_failed + 1, 16)
        self.paused_until = time.monotonic() + (backoff_s if pause_s is None else pause_s)


class Servers:
    """All addresses of one captioner. Lives in one event loop."""

    def __init__(self, urls: Sequence[str], most: int, first: int = _FIRST):
        self.all = [Server(url, most, first) for url in urls]
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_closed = False

    @property
    def limit(self) -> int:
        """Requests that all of them take at once."""
        return sum(server.level.limit for server in self.all)

    @property
    def num_waiting(self) -> int:
        """Requests without room."""
        return len(self._waiting)

    async def take(self) -> Server | None:
        """The least busy server, once one has room and does not rest; null when closed. Give it back."""
        while not self._is_closed:
            now = time.monotonic()
            if ready := self._ready(now):
                server = min(ready, key=lambda each: each.in_flight / each.level.limit)
                server.in_flight += 1
                return server
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            ends = [each.paused_until - now for each in self.all if each.paused_until > now]
            timer = asyncio.get_running_loop().call_later(min(ends) + 0.001, self._wake) if ends else None
            await future
            if timer is not None:
                timer.cancel()
        return None

    def give_back(self, server: Server) -> None:
        """A request of it has ended."""
        server.in_flight -= 1
        self._wake()

    def close(self) -> None:
        """Nothing is taken any more."""
        self._is_closed = True
        self._wake()

    def _ready(self, now: float) -> list[Server]:
        return [each for each in self.all if each.paused_until <= now and each.in_flight < each.level.limit]

    def _wake(self) -> None:
        """As many of those that wait as there is room for; all of them at the end."""
        room = sum(each.level.limit - each.in_flight for each in self._ready(time.monotonic()))
        for _ in range(len(self._waiting) if self._is_closed else min(room, len(self._waiting))):
            self._waiting.popleft().set_result(None)
