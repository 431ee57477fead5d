"""Who may ask: whoever has the token, by this host's name, from this page. What an answer may load: its own parts.

A page of another site can make a browser ask this server, also by a name that points here (DNS rebinding): it does not
know the token, its Host or Origin are others, and a cookie of ours is not sent along.
"""

import hmac
from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp

COOKIE = "tokenmill"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src "
    "'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_MOST_BODY_BYTES = 10_000


class Guard(BaseHTTPMiddleware):
    """`hosts`: what Host may say, such as 127.0.0.1:8900."""

    def __init__(self, app: ASGIApp, token: str, hosts: frozenset[str]):
        super().__init__(app)
        self._token, self._hosts = token, hosts

    async def dispatch(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Refuse, or answer with what a browser should know."""
        answer = self._refused(request) or self._entered(request)
        if answer is None:
            answer = await call_next(request)
        for name, value in _HEADERS.items():
            answer.headers.setdefault(name, value)
        return answer

    def _refused(self, request: Request) -> Response | None:
        if request.headers.get("host", "") not in self._hosts:
            return PlainTextResponse("another host\n", 421)
        if request.method not in ("GET", "HEAD"):
            origin = request.headers.get("origin", "")
            if origin.partition("://")[2] not in self._hosts:
                return PlainTextResponse("another origin\n", 403)
            if int(request.headers.get("content-length") or _MOST_BODY_BYTES + 1) > _MOST_BODY_BYTES:
                return PlainTextResponse("too long\n", 413)
        return None

    def _entered(self, request: Request) -> Response | None:
        """Take the token out of the address, into a cookie that no script reads."""
        given = request.query_params.get("token")
        if given is not None and self._is_token(given):
            rest = [(key, value) for key, value in request.query_params.multi_items() if key != "token"]
            answer = RedirectResponse(request.url.path + (f"?{urlencode(rest)}" if rest else ""), 303)
            answer.set_cookie(COOKIE, self._token, httponly=True, samesite="strict", path="/")
            return answer
        if self._is_token(request.cookies.get(COOKIE, "")):
            return None
        return PlainTextResponse("open the address that `tokenmill explore` printed: it holds a token\n", 401)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())
