"""What an OpenAI-compatible server says -> an Answer, or a ReplyError that tells whose fault it is.

Real servers answer bad pictures with 400 (`Failed to load image`) and with 500 (`Image size exceeds limit`, or nothing
at all), so that no 500 tells by itself whether the medium or the server is at fault: `failed` leaves it open.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from tokenmill.stages.caption.engines.engine import Answer
from tokenmill.stages.table.text import clean

Fault = Literal["row", "failed", "busy", "gone", "end"]

_MAX_WORDS_CHARS = 200
_CONTEXT = re.compile(
    r"context.{0,20}(length|window|size)|maximum.{0,20}(length|tokens)|too (many|long).{0,20}tokens?", re.I
)
_QUOTA = re.compile(r"insufficient_quota|billing|exceeded your current quota", re.I)
_NO_MODEL = re.compile(r"model", re.I)


class ReplyError(Exception):
    """`fault`: row (the medium's), failed (the medium's or the server's), busy (ask later), gone (no server there), end
    (asking on is in vain). `reason` is that of the row's rejection, `said` the server's words.
    """

    def __init__(self, fault: Fault, reason: str, said: str, pause_s: float | None = None):
        super().__init__(f"{reason}: {said}")
        self.fault, self.reason, self.said, self.pause_s = fault, reason, said, pause_s


def parse(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    """The answer in a reply. Raises ReplyError."""
    if status != 200:
        raise _refusal(status, headers, said_in(body))
    try:
        document = json.loads(body)
        choice = document["choices"][0]
        text, usage = choice["message"]["content"], document.get("usage") or {}
        if text is not None and not isinstance(text, str):
            raise TypeError(f"content is a {type(text).__name__}")
        counts = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
        reason = choice.get("finish_reason")
        return Answer(text or "", clean(reason, 32) if isinstance(reason, str) else None, *counts)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ReplyError("failed", "bad_answer", f"200 with an answer that is none ({what[:80]})") from error


def said_in(body: bytes) -> str:
    """The words of an error's body, on one line."""
    try:
        document: Any = json.loads(body)
        if isinstance(document, dict):
            document = document.get("error", document)
        if isinstance(document, dict):
            code = document.get("code")
            words = str(document.get("message") or document.get("detail") or "")
            words = f"{words} ({code})" if isinstance(code, str) and code else words
        else:
            words = str(document)
    except (ValueError, RecursionError):
        words = re.sub(r"<[^<>]*>", " ", body.decode(errors="replace"))
    return " ".join(clean(words).split())[:_MAX_WORDS_CHARS]


def _refusal(status: int, headers: Mapping[str, str], words: str) -> ReplyError:
    said = f"{status} {words}".strip()
    if status in (401, 403):  # its words may repeat the key
        return ReplyError("end", "http_client_error", f"{status}: the key is missing, wrong or expired")
    if status == 402 or status == 429 and _QUOTA.search(words):
        return ReplyError("end", "rate_limited", f"{said}: the account is used up")
    if status == 404:
        what = "it has no such model" if _NO_MODEL.search(words) else "the address is wrong; it ends in /v1 as a rule"
        return ReplyError("end", "http_client_error", f"{said}: {what}")
    if status in (429, 503, 529):
        return ReplyError("busy", "rate_limited", said, _retry_after_s(headers))
    if status in (400, 413, 422):
        return ReplyError("row", "context_too_long" if _CONTEXT.search(words) else "bad_picture", said)
    if status >= 500 or status in (408, 409, 425):
        return ReplyError("failed", "bad_picture" if status == 500 else "http_server_error", said)
    return ReplyError("end", "http_client_error", f"{said}: not what an OpenAI-compatible server says")


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds; a date is left to the backoff."""
    try:
        return max(0.0, float(headers.get("Retry-After", "")))
    except ValueError:
        return None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 1 << 31 else None
