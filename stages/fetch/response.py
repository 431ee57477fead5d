"""What came back for a url: its body in chunks, or a RowError that says why not, in words that do not hold the url."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import responses

import urllib3
from urllib3.exceptions import HTTPError, ProtocolError, SSLError, TimeoutError as Silence
from urllib3.util import Url

from tokenmill.stages.fetch.connections import TransientError, is_late
from tokenmill.stages.table.rows import RowError, words

REDIRECTS = frozenset({301, 302, 303, 307, 308})

_CHUNK_BYTES = 1 << 18
_WHOLE = frozenset({200, 203})
_TRANSIENT = frozenset({500, 502, 503, 504})
_ENCODINGS = frozenset({"", "identity", "gzip", "x-gzip", "deflate"})


class Response:
    """An answer as it streams in. Lives inside the function that was given to `fetch`.

    `asked` is the url as listed and `url` where redirects led; both may carry signatures in their query.
    `content_type`, `etag` and `last_modified` are the headers as given, null when not. `chunks` yields the body,
    decoded, at most 256 KiB at a time.
    """

    def __init__(self, asked: str, url: Url, answer: urllib3.BaseHTTPResponse, max_bytes: int, silence_s: float):
        self.asked = asked
        self.url = url.url
        self.content_type = answer.headers.get("content-type")
        self.etag = answer.headers.get("etag")
        self.last_modified = answer.headers.get("last-modified")
        self.chunks = self._read(answer, url.host or "", silence_s)
        self._declared_bytes = answer.length_remaining
        self.limit(max_bytes)

    def limit(self, max_bytes: int) -> None:
        """From here on reject what is longer than `max_bytes`, such as when the first bytes are those of an image.

        Raises RowError too_many_bytes at once when the answer's Content-Length says so.
        """
        self._max_bytes = max_bytes
        if self._declared_bytes is not None and self._declared_bytes > max_bytes:
            raise RowError("too_many_bytes", f"{self._declared_bytes} bytes; the limit is {max_bytes}")

    def _read(self, answer: urllib3.BaseHTTPResponse, host: str, silence_s: float) -> Iterator[bytes]:
        size_bytes = 0
        with failures(host, silence_s):
            for chunk in answer.stream(_CHUNK_BYTES, decode_content=True):
                size_bytes += len(chunk)
                if size_bytes > self._max_bytes:
                    raise RowError("too_many_bytes", f"more than {self._max_bytes} bytes")
                yield chunk


def refusal(host: str, answer: urllib3.BaseHTTPResponse) -> RowError | None:
    """Why `answer` is neither a whole body nor a redirect; null when it is one of them."""
    status = answer.status
    detail = f"{host} answered {status} {responses.get(status, '')}".strip()
    if status == 429:
        return TransientError("rate_limited", detail)
    if status in _TRANSIENT:
        return TransientError("http_server_error", detail)
    if status >= 400:
        return RowError("http_server_error" if status >= 500 else "http_client_error", detail)
    if status in REDIRECTS and "location" in answer.headers:
        return None
    if status not in _WHOLE:
        return RowError("bad_response", detail)
    encoding = answer.headers.get("content-encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        return RowError("bad_response", f"{host} sent content encoding {encoding!r}, which nobody asked for")
    return None


@contextmanager
def failures(host: str, silence_s: float) -> Iterator[None]:
    """urllib3's exceptions as RowErrors."""
    try:
        yield
    except Silence as error:
        if is_late():
            raise RowError("timed_out", f"{host} had not sent everything when the time was over") from error
        raise TransientError("timed_out", f"{host} sent nothing for {silence_s:g} s") from error
    except SSLError as error:
        if isinstance(error.args[0], ssl.SSLCertVerificationError):
            raise RowError("bad_certificate", f"{host}: {error.args[0].verify_message}") from error
        raise TransientError("connection_failed", f"{host}: {words(error)}") from error
    except ProtocolError as error:
        cause = error.args[-1]
        raise TransientError(
            "connection_failed", f"{host}: {words(cause if isinstance(cause, Exception) else error)}"
        ) from error
    except HTTPError as error:
        raise RowError("bad_response", f"{host}: {words(error)}") from error
