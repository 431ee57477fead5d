"""What a captioner's servers say of themselves, for a person who wonders why no answer comes.

Each is asked for its models, by this process and without a key: that one says 401 shows that it is there. vLLM tells in
its metrics how many requests it has at hand.
"""

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

_ANSWER_S = 3.0
_NAMED = 8  # servers in a line
_MAX_BYTES = 4 << 20
_GONE = (OSError, ValueError, http.client.HTTPException)
_AT_HAND = (("running", "in flight"), ("waiting", "wait"))  # of vLLM's metrics


def words_of(name: str, urls: Sequence[str], silent_s: float | None) -> str:
    """`silent_s`: since the last answer, where that is known."""
    shown = urls[:_NAMED]
    with ThreadPoolExecutor(len(shown)) as threads:
        found = list(threads.map(state_of, shown))
    states = [f"{url} {state}" for url, state in zip(shown, found, strict=True)]
    if len(urls) > _NAMED:
        states.append(f"and {len(urls) - _NAMED} more")
    last = "" if silent_s is None else f", the last answer {silent_s:,.0f} s ago"
    servers = "1 server" if len(urls) == 1 else f"{len(urls)} servers"
    return f"captioner {name} waits for {servers}{last}: {', '.join(states)}"


def state_of(url: str) -> str:
    """`answers`, `answers 401`, or `does not answer (why)`; of vLLM with what it has at hand."""
    url = url.rstrip("/")
    try:
        _got(f"{url}/models")
    except urllib.error.HTTPError as error:
        return f"answers {error.code}"
    except _GONE as error:
        return f"does not answer ({getattr(error, 'reason', None) or error})"
    at_hand = _at_hand(url.removesuffix("/v1"))
    return f"answers{' (' + at_hand + ')' if at_hand else ''}"


def _at_hand(base: str) -> str:
    """Nothing of a server that is no vLLM."""
    try:
        text = _got(f"{base}/metrics")
    except _GONE:
        return ""
    counts = {
        word: [float(found) for found in re.findall(rf"^vllm:num_requests_{key}(?:{{[^}}]*}})? (\S+)$", text, re.M)]
        for key, word in _AT_HAND
    }
    return ", ".join(f"{sum(numbers):.0f} {word}" for word, numbers in counts.items() if numbers)


def _got(url: str) -> str:
    with urllib.request.urlopen(url, timeout=_ANSWER_S) as reply:
        return reply.read(_MAX_BYTES).decode("utf-8", "replace")
