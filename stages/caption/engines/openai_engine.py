"""Engines `openai` and `vllm`: captions by OpenAI-compatible servers: rented ones, vLLM, SGLang, llama.cpp and others.

Many requests are in flight in one worker, on an event loop of its own; pictures are read and encoded meanwhile. The
client is aiohttp: the one named `openai` answers a twentieth as often per CPU second. A medium is rejected only while
its server answers others, or a plain grey picture: whatever else fails is the server's, and waited for.
"""

import asyncio
import base64
import io
import json
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import numpy as np
from PIL import Image

from tokenmill.stages.caption.captioners.config import CaptionerConfig, CaptionError
from tokenmill.stages.caption.engines.engine import Answer, Request, Result
from tokenmill.stages.caption.engines.replies import ReplyError, parse
from tokenmill.stages.caption.engines.servers import Server, Servers
from tokenmill.stages.table import limits
from tokenmill.stages.table.rows import RowError, words

_LEAST_AHEAD, _MOST_AHEAD = 16, 256  # requests that wait, encoded, for room at a server
_FIRST_OF_VLLM = 128  # in flight: it is known to batch, and to queue the rest
_JPEG_QUALITY = 90
_CONNECT_S = 10.0
_KEPT_S = 2.0  # idle connections; uvicorn, below vLLM and others, closes them after five, maybe just as one is used
_PROBE_S = 60.0
_REFUSED_AT_FIRST = 16  # media, and none answered: then the request is wrong, and not they
_MAX_BODY_BYTES = 8 << 20
_GREY = np.full((64, 64, 3), 128, np.uint8)


class OpenAiEngine:
    """Asks the servers of one captioner. `share`: the part of the run's budget that this worker has, with the one that
    died before it.

    Raises CaptionError where its environment lacks the key.
    """

    def __init__(self, name: str, config: CaptionerConfig, share: float = 1.0, run_id: str = ""):
        self.stopped: str | None = None
        self._key = f"caption.captioners.{name}.resources"
        self._config, self._how = config, config.resources
        variable = self._how.key_variable
        self._secret = "" if variable is None else os.environ.get(variable, "")
        if variable is not None and not self._secret:
            raise CaptionError(f"{self._key}.key_variable: a worker has no {variable}; start the cluster with it")
        self._budgets = {
            limit: max(1, int(given * share))
            for limit in ("max_requests", "max_run_tokens")
            if (given := getattr(self._how, limit)) is not None
        }
        self._spent = limits.lasting(f"{run_id}.{config.identity}", 2)
        self.num_answers = 0
        self._trouble_since: float | None = None
        self._done: queue.SimpleQueue[tuple[int, Result]] = queue.SimpleQueue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._inbox, self._is_woken = deque[tuple[int, bytes, Request]](), False
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="captions", daemon=True).start()
        self._servers, self._session = asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    @property
    def num_requests(self) -> int:
        """Sent so far."""
        return self._spent[0]

    @property
    def num_tokens(self) -> int:
        """In and out, of all answers so far."""
        return self._spent[1]

    def answers(self, requests: Iterator[tuple[int, Request]]) -> Iterator[tuple[int, Result]]:
        """Results as they come. While nothing was answered yet, refusals wait: they may be the request's fault."""
        num_open, held = 0, list[tuple[int, Result]]()
        for i, request in requests:
            if self.stopped is not None:
                yield i, None
                continue
            body = self._body(request.pictures, request.prompt)
            probe = Request([_GREY] * min(1, len(request.pictures)), request.prompt)
            self._hand_over(i, body, probe)
            num_open += 1
            limit = self._servers.limit
            # A server that batches answers many at once, and has room for as many at once.
            ahead = min(max(_LEAST_AHEAD, limit), _MOST_AHEAD)
            # Down by half of it at once: each change of threads costs as much as a request.
            least = limit + ahead // 2 if num_open >= limit + ahead else num_open
            while num_open and (num_open > least or not self._done.empty()):
                num_open -= 1
                yield from self._settled(self._done.get(), held)
        for _ in range(num_open):
            yield from self._settled(self._done.get(), held)
        yield from ((i, None if self.stopped else error) for i, error in held)

    def close(self) -> None:
        """End the loop and its connections."""
        asyncio.run_coroutine_threadsafe(self._session.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _settled(self, result: tuple[int, Result], held: list[tuple[int, Result]]) -> list[tuple[int, Result]]:
        if isinstance(result[1], RowError) and not self.num_answers:
            held.append(result)
            if len(held) == _REFUSED_AT_FIRST:
                said = result[1].columns["reject_detail"]
                self._end(f"the first {len(held)} media were refused and none answered: {said}; look at the captioner")
            return []
        ready = [*held, result] if self.num_answers else [result]
        if self.num_answers:
            held.clear()
        return ready

    async def _open(self) -> tuple[Servers, aiohttp.ClientSession]:
        headers = {"Content-Type": "application/json"}
        if self._secret:
            headers["Authorization"] = f"Bearer {self._secret}"
        timeout = aiohttp.ClientTimeout(total=self._how.timeout_s, sock_connect=min(_CONNECT_S, self._how.timeout_s))
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT_S)
        session = aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector)
        known = {"first": _FIRST_OF_VLLM} if self._config.engine == "vllm" else {}
        servers = Servers(self._how.urls, self._how.most_at_once, **known)
        self._proxies = {server.url: _proxy_of(server.url) for server in servers.all}
        return servers, session

    def _body(self, pictures: list[np.ndarray], prompt: str) -> bytes:
        sampling = self._config.sampling
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{_jpeg(pixels)}"}}
            for pixels in pictures
        ]
        document: dict[str, Any] = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if sampling.temperature > 0:
            document["seed"] = sampling.seed
        return json.dumps(document).encode()

    def _hand_over(self, i: int, body: bytes, probe: Request) -> None:
        self._inbox.append((i, body, probe))
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._is_woken = False  # before the look: what is put in after it wakes again
        while self._inbox:
            task = self._loop.create_task(self._ask(*self._inbox.popleft()))
            self._tasks.add(task)  # the loop itself holds them weakly
            task.add_done_callback(self._tasks.discard)

    async def _ask(self, i: int, body: bytes, probe: Request) -> None:
        try:
            result = await self._patiently(body, probe)
        except Exception as error:  # a fault of this module must not leave the stage waiting for ever
            self._end(f"{type(error).__name__}: {words(error)}")
            result = None
        if self.stopped is not None:
            self._servers.close()
        self._done.put((i, result))

    async def _patiently(self, body: bytes, probe: Request) -> Result:
        num_tries = 0
        while True:
            server = None if self.stopped else await self._servers.take()
            if server is None:
                return None
            asked_at = time.monotonic()
            try:
                self._check_budget()
                if self.stopped:
                    return None
                answer = await self._post(server, body)
                server.level.answered(self._servers.num_waiting > 0)
                self.num_answers += 1
                return answer
            except ReplyError as error:
                if error.fault in ("row", "failed"):
                    if error.reason == "timed_out":
                        server.level.cut()
                    if await self._is_well(server, probe, asked_at):
                        num_tries += 1
                        if num_tries >= (min(2, self._how.tries) if error.fault == "row" else self._how.tries):
                            return RowError(error.reason, self._safe(error.said))
                else:
                    self._troubled(server, error)
            finally:
                self._servers.give_back(server)

    def _troubled(self, server: Server, error: ReplyError) -> None:
        """The server is busy, gone, or refuses for good."""
        if error.fault == "end":
            self._end(f"{server.url} says {self._safe(error.said)}; {self._advice(error)}")
            return
        if error.fault == "busy":
            server.level.cut()
        if (error.pause_s or 0.0) > self._how.patience_s:
            self._end(f"{server.url} asks to wait {error.pause_s:g} s: {self._safe(error.said)}; go on then")
            return
        server.rest(error.pause_s)
        now = time.monotonic()
        self._trouble_since = self._trouble_since or now
        if now - self._trouble_since > self._how.patience_s:
            self._end(
                f"no answer for {self._how.patience_s:g} s; the last from {server.url}: {self._safe(error.said)}; see "
                "that the server runs and has room"
            )

    async def _is_well(self, server: Server, probe: Request, since: float) -> bool:
        """Whether the server has answered since, or answers a grey picture now."""
        async with server.probing:
            if server.answered_at > since:
                return True
            if server.probed_at > since:
                return False
            try:
                await asyncio.wait_for(self._post(server, self._body(*probe)), _PROBE_S)
                return True
            except TimeoutError:
                error = ReplyError("gone", "timed_out", "no answer to a grey picture either")
            except ReplyError as raised:
                error = raised
                if raised.fault == "row":
                    error = ReplyError("end", raised.reason, f"{raised.said}, to a plain grey picture too")
            server.probed_at = time.monotonic()
            self._troubled(server, error)
            return False

    async def _post(self, server: Server, body: bytes) -> Answer:
        """Raises ReplyError."""
        self._spent[0] += 1
        asked_at = time.monotonic()
        try:
            url, proxy = f"{server.url}/chat/completions", self._proxies[server.url]
            async with self._session.post(url, data=body, proxy=proxy) as reply:
                received = await reply.content.read(_MAX_BODY_BYTES) if reply.status != 200 else await reply.read()
                answer = parse(reply.status, reply.headers, received)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise ReplyError("gone", "connection_failed", words(error)) from error
        except TimeoutError as error:
            said = f"no answer within {self._how.timeout_s:g} s"
            raise ReplyError("failed", "timed_out", said) from error
        except MemoryError as error:  # another medium, which is decoded meanwhile, has taken all that there is
            raise ReplyError("busy", "out_of_memory", "no memory for the answer") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ReplyError("failed", "connection_failed", f"the answer broke off: {words(error)}") from error
        server.answered()
        self._spent[1] += (answer.tokens_in or 0) + (answer.tokens_out or 0)
        self._trouble_since = None
        return answer._replace(seconds=time.monotonic() - asked_at)

    def _check_budget(self) -> None:
        spent = {"max_requests": self.num_requests, "max_run_tokens": self.num_tokens}
        for limit, most in self._budgets.items():
            if spent[limit] >= most:
                self._end(f"{self._key}.{limit}={getattr(self._how, limit)} is spent; raise it")

    def _advice(self, error: ReplyError) -> str:
        if error.said.startswith(("401", "403")):
            variable = self._how.key_variable
            return f"set {self._key}.key_variable" if variable is None else f"correct the environment's {variable}"
        return "correct the captioner"

    def _end(self, why: str) -> None:
        self.stopped = self.stopped or why

    def _safe(self, text: str) -> str:
        return text.replace(self._secret, "***") if self._secret else text


def _proxy_of(url: str) -> str | None:
    """As the environment says. Looked up once: the session itself would do so in a thread, twice for each request."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


def _jpeg(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_JPEG_QUALITY)
    return base64.b64encode(file.getvalue()).decode("ascii")
