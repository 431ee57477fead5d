"""An OpenAI-compatible server that fails as it is told, over real HTTP.

`python caption_server.py [quick|slow|rate]` serves until its stdin closes.

A script maps (number of the request, its document) to a Reply; without one every request is answered.
"""

import asyncio
import heapq
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

CAPTION = "a red circle above a blue square on a white ground"


@dataclass
class Reply:
    """What is sent: after `delay_s`, and only the first `cut` bytes of it."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    cut: int | None = None


def answer(text: str | None = CAPTION, finish_reason: str = "stop", tokens: int = 10, **more: Any) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 90, "completion_tokens": tokens, "total_tokens": 90 + tokens}
    return Reply(body=json.dumps({"id": "1", "choices": [choice], "usage": usage}).encode(), **more)


def error(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    document = {"error": {"message": message, "code": code}}
    return Reply(status, json.dumps(document).encode(), {name.replace("_", "-"): headers[name] for name in headers})


Script = Callable[[int, dict[str, Any]], Reply]


class CaptionServer:
    """`asked` holds the documents of all requests, `most_at_once` how many were open together."""

    def __init__(self, script: Script | None = None, port: int = 0):
        self.script = script
        self.asked: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.num_open = self.most_at_once = 0
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> "CaptionServer":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def stop(self) -> None:
        async def end() -> None:
            self._server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, limit=1 << 26)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().partition("content-length:")[2].partition("\r\n")[0])
        received = await reader.readexactly(length)
        if self.script is None:
            reply = answer()
        else:
            self.headers.append(head)
            self.asked.append(json.loads(received))
            self.num_open += 1
            self.most_at_once = max(self.most_at_once, self.num_open)
            try:
                reply = self.script(len(self.asked) - 1, self.asked[-1])
                await asyncio.sleep(reply.delay_s)
            finally:
                self.num_open -= 1
        headers = {"Content-Type": "application/json", "Content-Length": str(len(reply.body))} | reply.headers
        lines = [f"HTTP/1.1 {reply.status} X", *(f"{name}: {value}" for name, value in headers.items())]
        data = "\r\n".join([*lines, "", ""]).encode() + reply.body
        writer.write(data[: reply.cut])
        await writer.drain()
        return reply.cut is None


@contextmanager
def serving(script: Script | None = lambda *_: answer(), port: int = 0) -> Iterator[CaptionServer]:
    """A server for the length of a test."""
    server = CaptionServer(script, port).start()
    try:
        yield server
    finally:
        server.stop()


def slow(slots: int = 16, seconds: float = 0.05) -> Script:
    """Works on so many requests at once, each so long."""
    free = [0.0] * slots

    def script(*_: Any) -> Reply:
        now = time.monotonic()
        end = max(now, heapq.heappop(free)) + seconds
        heapq.heappush(free, end)
        return answer(delay_s=end - now)

    return script


def limited(per_s: float = 150.0, burst: float = 15.0) -> Script:
    """Refuses what is more than a rate."""
    left, at = burst, time.monotonic()

    def script(*_: Any) -> Reply:
        nonlocal left, at
        now = time.monotonic()
        left, at = min(burst, left + per_s * (now - at)), now
        if left < 1:
            return error(429, "rate limit reached")
        left -= 1
        return answer(delay_s=0.02)

    return script


if __name__ == "__main__":
    scripts: dict[str, Callable[[], Script | None]] = {"quick": lambda: None, "slow": slow, "rate": limited}
    chosen = CaptionServer(scripts[(sys.argv[1:] or ["quick"])[0]]()).start()
    print(chosen.url, flush=True)
    sys.stdin.read()  # until the other side closes it
    chosen.stop()
