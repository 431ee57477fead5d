"""A web server of a few lines on loopback, and a resolver that knows only the names it is told."""

import socket
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Web"

    def setup(self) -> None:
        super().setup()
        self.server.num_connections += 1

    def do_GET(self) -> None:
        route = self.server.routes.get(self.path.partition("?")[0])
        with self.server.lock:
            self.server.asked.append(self.path)
            self.server.started.append(time.monotonic())
            self.server.headers.append(dict(self.headers.items()))
        if route is None:
            self.answer(404)
        else:
            route(self)

    def answer(self, status: int = 200, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        """A whole answer; `length` lies about the body, and `x_y` is the header X-Y."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection |= length is not None

    def raw(self, data: bytes) -> None:
        self.wfile.write(data)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class Web(ThreadingHTTPServer):
    """`routes` maps paths to functions of the handler; all others are 404. `asked` lists the paths in order."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, context: ssl.SSLContext | None = None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes: dict[str, Callable[[Handler], None]] = {}
        self.asked: list[str] = []
        self.started: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.num_connections = 0
        self.scheme = "http"
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.scheme = "https"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are what is tested."""

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.server_port}{path}"

    def stop(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


class Names:
    """Stands in for socket.getaddrinfo; numbers are resolved as ever. Each of `answers` is given once, the last for
    ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        self.num_asked = 0
        self._numbers = socket.getaddrinfo

    def __call__(self, host: str, port: int, *_: object, **__: object) -> list:
        if host not in self.answers:
            return self._numbers(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        self.num_asked += 1
        given = self.answers[host]
        addresses = given.pop(0) if len(given) > 1 else given[0]
        return [entry for text in addresses for entry in self._numbers(text, port, type=socket.SOCK_STREAM)]
