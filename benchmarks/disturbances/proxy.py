"""A proxy in front of an S3 server that, seeded, spoils a share of the requests in the ways of real networks.

Requests pass untouched, the Host header included, so a server that verifies signatures must know the proxy's address
as its own; moto verifies none.
"""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# error_500, slow_down: refused. reset: cut before the server heard of it. lost: done by the server, and the answer cut.
# truncated: less body than Content-Length says. slow: answered late. trickled: the body comes in small pieces.
FAULTS = ("error_500", "slow_down", "reset", "lost", "truncated", "slow", "trickled")
_REFUSALS = {"error_500": (500, "InternalError"), "slow_down": (503, "SlowDown"), "denied": (403, "AccessDenied")}
_OF_BODIES = ("truncated", "trickled")
_PIECES = 8
_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive"}


class Proxy(ThreadingHTTPServer):
    """Listens on a free port of loopback while in `with`; `injected` counts the faults by kind."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str, share: float = 0.05, seed: int = 0, slow_s: float = 2.0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.share, self.slow_s = upstream.removeprefix("http://"), share, slow_s
        self.injected: Counter[str] = Counter()
        self.num_requests = 0
        self.denied_methods: tuple[str, ...] = ()  # refused always: a user without permission
        self._random, self._lock = random.Random(seed), threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "Proxy":
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def fault(self, method: str) -> str | None:
        """What befalls the next request; what befalls a body only where there is one."""
        with self._lock:
            self.num_requests += 1
            if method in self.denied_methods:
                return "denied"
            if self._random.random() >= self.share:
                return None
            kind = self._random.choice([kind for kind in FAULTS if kind not in _OF_BODIES or method == "GET"])
            self.injected[kind] += 1
            return kind

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _any(self) -> None:
        body = self._body()
        fault = self.server.fault(self.command)
        if fault == "slow":
            time.sleep(self.server.slow_s)
        if fault in _REFUSALS:
            self._refuse(*_REFUSALS[fault])
        elif fault == "reset":
            self._reset()
        else:
            status, headers, answer = self._forward(body)
            if fault == "lost":
                self._reset()
            else:
                self._send(status, headers, answer, fault)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _any  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP | {"content-length", "expect"}:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes, fault: str | None = None) -> None:
        self.send_response_only(status)
        has_length = False
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
                has_length |= name.lower() == "content-length"
        if not has_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "trickled":
            step = max(1, -(-len(body) // _PIECES))
            for start in range(0, len(body), step):
                time.sleep(self.server.slow_s / _PIECES)
                self.wfile.write(body[start : start + step])
            return
        self.wfile.write(body[: len(body) // 2] if fault == "truncated" else body)
        self.close_connection = fault == "truncated"

    def _refuse(self, status: int, code: str) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        self._send(status, [("Content-Type", "application/xml")], b"" if self.command == "HEAD" else body)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        # Closing the last descriptor of a socket that does not linger sends RST instead of FIN.
        self.rfile.close()
        self.wfile.close()
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Silent."""
