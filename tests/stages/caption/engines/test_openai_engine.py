"""Engine `openai` against a server that fails in each way that servers do, over real HTTP."""

import base64
import io
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from caption_server import CAPTION, CaptionServer, Reply, Script, answer, error, serving
from PIL import Image

from tokenmill.stages.caption.captioners.config import CaptionerConfig, CaptionError
from tokenmill.stages.caption.engines.engine import Answer, Request, Result
from tokenmill.stages.caption.engines.openai_engine import OpenAiEngine
from tokenmill.stages.table.rows import RowError

pytestmark = pytest.mark.service

KEY = "sk-very-secret-1234567890"


def is_grey(document: dict[str, Any]) -> bool:
    """Whether the request is the engine's own, that looks whether the server is well."""
    return shade(document) == 128


def shade(document: dict[str, Any]) -> int:
    url = document["messages"][0]["content"][0]["image_url"]["url"]
    return int(np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))).mean().round())


def engine_of(*servers: CaptionServer | str, **how: Any) -> OpenAiEngine:
    urls = [server if isinstance(server, str) else server.url for server in servers]
    config = {"engine": "openai", "model": "tiny", "resources": {"urls": urls, "timeout_s": 5.0, **how}}
    return OpenAiEngine("api", CaptionerConfig.model_validate(config))


def ask(engine: OpenAiEngine, count: int) -> dict[int, Result]:
    """Pictures whose shade is 10 times their number."""

    def requests() -> Iterator[tuple[int, Request]]:
        for i in range(count):
            yield i, Request([np.full((40, 40, 3), (10 * i) % 120, np.uint8)], "Describe")

    try:
        return dict(engine.answers(requests()))
    finally:
        engine.close()


def run(script: Script, count: int = 4, **how: Any) -> tuple[dict[int, Result], OpenAiEngine, CaptionServer]:
    with serving(script) as server:
        engine = engine_of(server, **how)
        return ask(engine, count), engine, server


def reasons(results: dict[int, Result]) -> dict[int, str]:
    return {i: each.columns["reject_reason"] for i, each in results.items() if isinstance(each, RowError)}


def test_answers_with_their_counts():
    results, engine, server = run(lambda *_: answer(tokens=7), 9)
    assert results.keys() == set(range(9)) and all(0 < each.seconds < 60 for each in results.values())
    assert {each._replace(seconds=None) for each in results.values()} == {Answer(CAPTION, "stop", 90, 7)}
    assert engine.stopped is None
    (document, *_) = server.asked
    assert document["model"] == "tiny" and document["max_tokens"] == 512 and document["temperature"] == 0
    assert document["messages"][0]["content"][-1] == {"type": "text", "text": "Describe"}
    assert engine.num_requests == 9 and engine.num_tokens == 9 * 97


def test_a_busy_server_is_asked_again_and_no_medium_pays_for_it():
    results, engine, server = run(lambda n, _: error(429, "slow down") if n < 6 else answer(), 4)
    assert len(results) == 4 and not reasons(results) and engine.stopped is None
    assert len(server.asked) >= 10


def test_retry_after_is_obeyed():
    times = []

    def script(n: int, _: dict) -> Reply:
        times.append(time.monotonic())
        return error(503, "busy", Retry_After="1.2") if n == 0 else answer()

    results, _, _ = run(script, 1)
    assert isinstance(results[0], Answer) and 1.2 <= times[1] - times[0] < 3


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda: error(400, "Failed to load image: Truncated File Read"), "bad_picture"),
        (lambda: error(500, "Image size (280000000 pixels) exceeds limit"), "bad_picture"),
        (lambda: Reply(500, b"Internal Server Error"), "bad_picture"),
        (lambda: error(400, "This model's maximum context length is 4096 tokens"), "context_too_long"),
        (lambda: Reply(200, b'{"choices": ['), "bad_answer"),
        (lambda: Reply(200, b"<html>gateway</html>"), "bad_answer"),
        (lambda: Reply(200, b'{"choices": []}'), "bad_answer"),
        (lambda: Reply(200, b'{"choices": [{"message": {"content": 7}}]}'), "bad_answer"),
        (lambda: answer(cut=150), "connection_failed"),
        (lambda: Reply(cut=0), "connection_failed"),
        (lambda: answer(delay_s=30), "timed_out"),
        (lambda: error(502, "bad gateway"), "http_server_error"),
    ],
)
def test_one_medium_that_always_fails_is_rejected_alone(bad, reason):
    results, engine, server = run(lambda _, document: bad() if shade(document) == 20 else answer(), 5, timeout_s=0.7)
    assert reasons(results) == {2: reason} and engine.stopped is None
    assert sum(shade(document) == 20 for document in server.asked) <= 3


def test_a_medium_that_fails_alone_is_told_from_a_server_that_fails_by_a_grey_picture():
    results, _, server = run(lambda _, document: answer() if is_grey(document) else error(500, ""), 1)
    assert reasons(results) == {0: "bad_picture"}
    assert sum(map(is_grey, server.asked)) == 3


def test_an_outage_rejects_nothing():
    began = time.monotonic()
    fails = lambda n, _: error(500, "out of order") if time.monotonic() - began < 2 else answer()  # noqa: E731
    results, engine, _ = run(fails, 8)
    assert not reasons(results) and all(isinstance(each, Answer) for each in results.values())
    assert engine.stopped is None


def test_a_server_that_comes_back_is_asked_again():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    late: list[CaptionServer] = []
    begin = threading.Timer(1.5, lambda: late.append(CaptionServer(lambda *_: answer(), port).start()))
    begin.start()
    try:
        results = ask(engine_of(f"http://127.0.0.1:{port}/v1"), 3)
    finally:
        begin.join()
        late[0].stop()
    assert all(isinstance(each, Answer) for each in results.values())


def test_a_server_that_is_gone_stops_the_run_and_keeps_answers():
    script = lambda n, _: answer() if n < 3 else error(503, "shutting down")  # noqa: E731
    results, engine, _ = run(script, 40, patience_s=1.5)
    assert sum(isinstance(each, Answer) for each in results.values()) == 3
    assert sum(each is None for each in results.values()) == 37 and not reasons(results)
    assert engine.stopped is not None and "no answer for 1.5 s" in engine.stopped and "shutting down" in engine.stopped
    assert "\n" not in engine.stopped


def test_nobody_there():
    engine = engine_of("http://127.0.0.1:9/v1", patience_s=1.0)
    assert ask(engine, 3) == dict.fromkeys(range(3))
    assert engine.stopped is not None and "http://127.0.0.1:9/v1" in engine.stopped


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (error(401, f"Incorrect API key provided: {KEY}"), "correct the environment's MY_KEY"),
        (error(403, "expired"), "correct the environment's MY_KEY"),
        (error(404, "The model `tiny` does not exist", "model_not_found"), "it has no such model"),
        (Reply(404, b"<html>nginx</html>"), "ends in /v1"),
        (error(429, "You exceeded your current quota", "insufficient_quota"), "the account is used up"),
        (error(429, "later", Retry_After="86400"), "asks to wait 86400 s"),
        (error(400, f"unknown field with {KEY}"), "to a plain grey picture too"),
        (error(301, "moved"), "not what an OpenAI-compatible server says"),
    ],
)
def test_what_no_patience_mends_stops_at_once_and_never_tells_the_key(reply, said, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    began = time.monotonic()
    results, engine, server = run(lambda *_: reply, 30, key_variable="MY_KEY")
    assert results == dict.fromkeys(range(30)) and time.monotonic() - began < 5
    assert engine.stopped is not None and said in engine.stopped and KEY not in engine.stopped
    assert f"Authorization: Bearer {KEY}" in server.headers[0] and len(server.asked) < 20


def test_where_the_first_are_refused_and_none_answered_it_is_no_medium_s_fault():
    script = lambda _, document: answer() if is_grey(document) else error(400, "too large")  # noqa: E731
    results, engine, _ = run(script, 3)
    assert reasons(results) == dict.fromkeys(range(3), "bad_picture") and engine.stopped is None
    results, engine, _ = run(script, 40)
    assert results == dict.fromkeys(range(40))
    assert engine.stopped is not None and "the first 16 media were refused and none answered" in engine.stopped
    # A later answer proves that the first ones were at fault.
    late = lambda _, document: answer() if shade(document) in (110, 128) else error(400, "too large")  # noqa: E731
    results, engine, _ = run(late, 12)
    assert engine.stopped is None and len(reasons(results)) == 11


def test_a_worker_without_the_key_says_so(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(CaptionError, match="a worker has no MY_KEY"):
        engine_of("http://127.0.0.1:9/v1", key_variable="MY_KEY")


def test_budgets_stop_and_keep_what_was_answered():
    results, engine, server = run(lambda *_: answer(), 50, max_requests=12)
    num_answers = sum(isinstance(each, Answer) for each in results.values())
    assert num_answers == len(server.asked) == 12
    assert engine.stopped == "caption.captioners.api.resources.max_requests=12 is spent; raise it"
    results, engine, _ = run(lambda *_: answer(tokens=10), 50, max_run_tokens=1000)
    assert 10 <= sum(isinstance(each, Answer) for each in results.values()) < 30
    assert engine.stopped is not None and "max_run_tokens=1000" in engine.stopped


def test_servers_share_the_load_and_a_dead_one_leaves_it_to_the_others():
    slow, quick = (lambda *_: answer(delay_s=0.08)), (lambda *_: answer(delay_s=0.01))
    with serving(slow) as one, serving(quick) as two:
        results = ask(engine_of(one, two, "http://127.0.0.1:9/v1"), 120)
    assert all(isinstance(each, Answer) for each in results.values())
    assert len(two.asked) > 1.5 * len(one.asked) > 10


def test_the_environment_s_proxy_is_asked_where_it_is_for_the_address(monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving() as proxy, serving() as server:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        far = ask(engine_of("http://captions.invalid/v1"), 3)
        near = ask(engine_of(server), 3)
    assert all(isinstance(each, Answer) for each in [*far.values(), *near.values()])
    assert len(proxy.asked) == len(server.asked) == 3 and "captions.invalid" in proxy.headers[0]
