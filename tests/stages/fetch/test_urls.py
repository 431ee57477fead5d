"""Urls fetched from a server that does everything wrong in turn."""

import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from ssl import create_default_context

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from web_server import Handler, Names, Web

from tokenmill.stages.fetch import connections
from tokenmill.stages.fetch.config import FetchConfig, FetchPace
from tokenmill.stages.fetch.connections import is_public
from tokenmill.stages.fetch.host_queue import Turns
from tokenmill.stages.fetch.response import Response
from tokenmill.stages.fetch.urls import Fetcher, _host_by_host
from tokenmill.stages.table.rows import RowError

LIMIT = 1 << 20
CONTEXT = ssl.create_default_context()
PUBLIC = "93.184.215.14"


@pytest.fixture(autouse=True)
def one_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the system's certificates takes longer than most tests."""
    monkeypatch.setattr(ssl, "create_default_context", lambda: CONTEXT)


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.stop()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    resolver = Names()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    return resolver


@pytest.fixture
def internet(web: Web, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Connections to PUBLIC end up at `web`; lists the addresses that were connected to."""
    connected: list[tuple] = []

    def connect_there(self: socket.socket, address: tuple) -> None:
        connected.append(address)
        if address[0] != PUBLIC:
            raise ConnectionRefusedError(111, "Connection refused")
        socket.socket.connect(self, ("127.0.0.1", web.server_port))

    monkeypatch.setattr(connections._Timed, "connect", connect_there)
    return connected


def fetcher(allow_private: bool = True, obey_robots: bool = False, obey_opt_out: bool = True, **pace) -> Fetcher:
    config = FetchConfig(
        allow_private=allow_private, obey_robots=obey_robots, obey_opt_out=obey_opt_out, user_agent="mill/1 (test)"
    )
    return Fetcher(config, FetchPace(**{"backoff_s": 0.0, "host_delay_s": 0.0, "retries": 2, **pace}))


def body(response: Response) -> bytes:
    return b"".join(response.chunks)


def rejection(fetch: Fetcher, url: str, receive: Callable[[Response], object] = body, max_bytes: int = LIMIT) -> str:
    """reason: detail"""
    with pytest.raises(RowError) as caught:
        fetch.fetch(url, receive, max_bytes)
    return str(caught.value)


def reason(fetch: Fetcher, url: str, max_bytes: int = LIMIT) -> str:
    return rejection(fetch, url, max_bytes=max_bytes).partition(":")[0]


def sends(data: bytes, status: int = 200, **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(status, data, **headers)


def in_turn(*routes: Callable[[Handler], None]) -> Callable[[Handler], None]:
    """One route for each request, the last for all further ones."""
    left = list(routes)
    return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


def drips(data: bytes, every_s: float = 0.02) -> Callable[[Handler], None]:
    """`data`, then one byte after another."""

    def drip(handler: Handler) -> None:
        handler.raw(data)
        while not handler.server.closing.wait(every_s):
            handler.raw(b"x")

    return drip


def test_what_comes_back(web: Web):
    data = bytes(range(256)) * 4000
    web.routes["/a b.jpg"] = web.routes["/a%20b.jpg"] = sends(
        data, ETag='"e1"', Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT", Content_Type="image/jpeg"
    )

    def receive(response: Response) -> tuple:
        chunks = list(response.chunks)
        assert max(len(chunk) for chunk in chunks) <= 1 << 18 and len(chunks) > 1
        return response.asked, response.url, response.etag, response.last_modified, response.content_type, chunks

    asked = web.url("/a b.jpg?size=1#part")
    *facts, chunks = fetcher().fetch(asked, receive, LIMIT)
    assert facts == [
        asked,
        web.url("/a%20b.jpg?size=1#part"),
        '"e1"',
        "Mon, 01 Jan 2024 00:00:00 GMT",
        "image/jpeg",
    ]
    assert b"".join(chunks) == data and web.asked == ["/a%20b.jpg?size=1"]
    assert web.headers[0]["User-Agent"] == "mill/1 (test)"


def test_connections_are_kept(web: Web):
    web.routes["/a"] = sends(b"a")
    fetch = fetcher()
    assert [fetch.fetch(web.url("/a"), body, LIMIT) for _ in range(3)] == [b"a"] * 3
    assert (len(web.asked), web.num_connections) == (3, 1)


def test_redirects(web: Web, names: Names):
    names.answers = {"b.test": [["127.0.0.1"]]}
    web.routes["/1"] = sends(b"", 302, Location="/2?q")
    web.routes["/2"] = sends(b"", 307, Location=web.url("/\u00fc", host="b.test").encode().decode("latin-1"))
    web.routes["/%C3%BC"] = sends(b"here")
    found = fetcher().fetch(web.url("/1"), lambda response: (response.url, body(response)), LIMIT)
    assert found == (web.url("/%C3%BC", host="b.test"), b"here")
    assert web.headers[-1]["Host"] == f"b.test:{web.server_port}"


def test_redirects_without_end(web: Web):
    web.routes["/loop"] = sends(b"", 301, Location="/loop")
    web.routes["/nowhere"] = sends(b"", 302)
    assert reason(fetcher(), web.url("/loop")) == "too_many_redirects"
    assert web.asked == ["/loop"] * 6
    assert reason(fetcher(), web.url("/nowhere")) == "bad_response"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("http://127.0.0.1:{port}/secret", "private_address"),
        ("http://internal.test:{port}/secret", "private_address"),
        ("//[::1]:{port}/secret", "private_address"),
        ("file:///etc/passwd", "bad_url"),
        ("http://me:hunter2@public.test/secret", "bad_url"),
        ("http://[", "bad_url"),
    ],
)
def test_redirects_to_where_nobody_may_look(web: Web, names: Names, internet: list, location: str, expected: str):
    names.answers = {"public.test": [[PUBLIC]], "internal.test": [["10.0.0.8"]]}
    web.routes["/secret"] = sends(b"key")
    web.routes["/open"] = sends(b"picture")
    web.routes["/go"] = sends(b"", 302, Location=location.format(port=web.server_port))
    fetch = fetcher(allow_private=False)
    assert fetch.fetch("http://public.test/open", body, LIMIT) == b"picture"
    message = rejection(fetch, "http://public.test/go")
    assert message.startswith(expected) and "hunter2" not in message
    assert web.asked == ["/open", "/go"] and {address[0] for address in internet} == {PUBLIC}


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "2130706433", "0177.0.0.1", "0x7f.1", "0x7f000001", "0", "169.254.169.254", "10.0.0.1"),
        *(
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[64:ff9b::7f00:1]",
            "[fe80::1]",
            "[fd00:ec2::254]",
        ),
    ],
)
def test_private_addresses_in_every_spelling(host: str, internet: list):
    assert reason(fetcher(allow_private=False), f"http://{host}/") == "private_address"
    assert not internet


def test_what_is_public():
    shared, multicast, benchmark, site = "100.100.100.200", "224.0.0.1", "198.18.0.1", "fec0::1"
    wrapped = ["2002:7f00:1::", "::127.0.0.1", "64:ff9b:1::808:808", "ff0e::1", "2001:db8::1", "168.63.129.16"]
    assert not any(is_public(address) for address in [shared, multicast, benchmark, site, *wrapped, "fe80::1%eth0"])
    assert all(is_public(address) for address in ["8.8.8.8", "::ffff:8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])


def test_a_name_that_changes_its_mind(web: Web, names: Names, internet: list):
    """DNS rebinding: judged once as public, asked again it would be this machine."""
    names.answers = {"rebind.test": [[PUBLIC], ["127.0.0.1"]]}
    web.routes["/a"] = lambda handler: handler.answer(200, b"a", Connection="close")
    fetch = fetcher(allow_private=False)
    assert fetch.fetch("http://rebind.test/a", body, LIMIT) == b"a"
    assert names.num_asked == 1 and internet == [(PUBLIC, 80)]
    message = rejection(fetch, "http://rebind.test/a")
    assert message.startswith("private_address: rebind.test is at 127.0.0.1") and len(internet) == 1


def test_only_public_ones_of_a_name_are_tried(web: Web, names: Names, internet: list):
    names.answers = {"both.test": [["10.0.0.1", "8.8.8.8", PUBLIC]]}
    web.routes["/a"] = sends(b"a")
    assert fetcher(allow_private=False).fetch("http://both.test/a", body, LIMIT) == b"a"
    assert [address[0] for address in internet] == ["8.8.8.8", PUBLIC]


def test_names_that_lead_nowhere(names: Names, internet: list):
    names.answers = {"down.test": [["8.8.8.8"]]}
    fetch = fetcher(allow_private=False)
    assert reason(fetch, "http://missing.test/") == "no_such_host"
    assert rejection(fetch, "http://down.test/").startswith("connection_failed: down.test port 80: Connection refused")
    assert len(internet) == 3


@pytest.mark.parametrize(
    "url",
    [
        *("", "photo.jpg", "/photo.jpg", "file:///etc/passwd", "ftp://a.test/x", "http://", "http:///x", "data:,x"),
        *("http://a.test:99999/", "http://[::1/", "http://user:hunter2@a.test/x", "http://a b/", "http://a..test/x"),
        *("http://" + "a" * 70 + ".test/", "javascript:alert(1)", "http://\udc80/", "s3://bucket/key"),
    ],
)
def test_bad_urls(url: str, internet: list):
    message = rejection(fetcher(allow_private=False), url)
    assert message.startswith("bad_url") and "hunter2" not in message and not internet


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_passing_faults_are_tried_again(web: Web, status: int):
    web.routes["/a"] = in_turn(sends(b"", status), sends(b"", status), sends(b"a"))
    assert fetcher().fetch(web.url("/a"), body, LIMIT) == b"a"
    web.routes["/a"] = sends(b"", status)
    assert reason(fetcher(), web.url("/a")) == ("rate_limited" if status == 429 else "http_server_error")
    assert len(web.asked) == 6


@pytest.mark.parametrize(("status", "expected"), [(403, "http_client_error"), (404, "http_client_error")])
def test_final_answers_are_not(web: Web, status: int, expected: str):
    web.routes["/a"] = sends(b"", status)
    assert rejection(fetcher(), web.url("/a")).startswith(f"{expected}: 127.0.0.1 answered {status} ")
    assert len(web.asked) == 1


@pytest.mark.parametrize(
    ("status", "expected"), [(501, "http_server_error"), (204, "bad_response"), (206, "bad_response"), (999, "http_s")]
)
def test_odd_answers(web: Web, status: int, expected: str):
    web.routes["/a"] = sends(b"", status)
    assert rejection(fetcher(), web.url("/a")).startswith(expected)
    assert len(web.asked) == 1


def test_backoff_doubles_with_jitter(web: Web, monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    monkeypatch.setattr("tokenmill.stages.fetch.urls.time.sleep", slept.append)
    web.routes["/a"] = sends(b"", 500)
    reason(fetcher(retries=8, backoff_s=1.0), web.url("/a"))
    assert len(slept) == 8 and len(set(slept)) == 8
    assert all(min(2**i, 60) * 0.5 <= wait_s <= min(2**i, 60) * 1.5 for i, wait_s in enumerate(slept))


def test_a_host_that_asks_for_a_pause_gets_it(web: Web):
    web.routes["/a"] = in_turn(sends(b"", 429, Retry_After="1"), sends(b"a"))
    web.routes["/b"] = sends(b"b")
    fetch = fetcher()
    assert fetch.fetch(web.url("/a"), body, LIMIT) == b"a"
    assert 0.9 <= web.started[1] - web.started[0] < 5


def test_a_long_pause_ends_all_questions(web: Web):
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    web.routes["/a"] = sends(b"", 503, Retry_After=later)
    web.routes["/b"] = sends(b"b")
    fetch = fetcher()
    assert rejection(fetch, web.url("/a")).startswith("rate_limited: 127.0.0.1 asks to be left alone for 3")
    assert reason(fetch, web.url("/b")) == "rate_limited" and web.asked == ["/a"]


@pytest.mark.parametrize("value", ["soon", "-5", "9" * 5000, "Mon, 01 Jan 0000 00:00:00 GMT", ""])
def test_pauses_that_make_no_sense(web: Web, value: str):
    web.routes["/a"] = in_turn(sends(b"", 429, Retry_After=value), sends(b"a"))
    assert fetcher().fetch(web.url("/a"), body, LIMIT) == b"a"


CUT = {
    "length": lambda handler: handler.answer(200, b"half", length=8),
    "chunked": lambda handler: handler.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nhalf"),
    "between chunks": lambda handler: handler.raw(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
    ),
    "no answer": lambda handler: handler.raw(b""),
    "no http": lambda handler: handler.raw(b"SSH-2.0-OpenSSH_9.2p1\r\n"),
}


@pytest.mark.parametrize("cut", CUT.values(), ids=CUT)
def test_what_breaks_off_starts_anew(web: Web, cut: Callable[[Handler], None]):
    web.routes["/a"] = in_turn(cut, sends(b"whole"))
    assert fetcher().fetch(web.url("/a"), body, LIMIT) == b"whole"
    web.routes["/a"] = cut
    assert reason(fetcher(), web.url("/a")) == "connection_failed"
    assert len(web.asked) == 5


def test_what_the_receiver_raises_is_raised(web: Web):
    web.routes["/a"] = sends(b"a")

    def disk_is_full(response: Response) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fetcher().fetch(web.url("/a"), disk_is_full, LIMIT)
    with pytest.raises(OSError, match="No space"):
        fetcher().fetch_all([web.url("/a")], disk_is_full, LIMIT)
    assert len(web.asked) == 2


def test_too_many_bytes(web: Web):
    sent = threading.Event()

    def long(handler: Handler) -> None:
        handler.raw(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            for _ in range(512):  # 32 MB, not without end: a fetcher that takes it all should fail, not fill the memory
                handler.raw(b"x" * 65536)
        finally:
            sent.set()

    def declared(handler: Handler) -> None:
        handler.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000001\r\n\r\n")
        handler.server.closing.wait(10)

    web.routes.update({"/long": long, "/declared": declared, "/fits": sends(b"x" * 1000)})
    assert reason(fetcher(), web.url("/long"), 1_000_000) == "too_many_bytes"
    assert sent.wait(5), "the connection is closed"
    assert "too_many_bytes: 1000001 bytes; the limit is 1000000" in rejection(
        fetcher(), web.url("/declared"), body, 10**6
    )
    assert len(fetcher().fetch(web.url("/fits"), body, 1000)) == 1000
    assert reason(fetcher(), web.url("/fits"), 999) == "too_many_bytes"


def test_the_first_bytes_may_lower_the_limit(web: Web):
    web.routes["/declared"] = sends(b"x" * 600_000)
    web.routes["/streamed"] = lambda handler: handler.raw(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 600_000)
    seen: list[int] = []

    def receive(response: Response) -> None:
        seen.append(len(next(response.chunks)))
        response.limit(1000)
        list(response.chunks)

    for path in ("/declared", "/streamed"):
        assert rejection(fetcher(), web.url(path), receive).startswith("too_many_bytes")
    assert seen == [1 << 18] * 2


def test_encodings(web: Web):
    text = b"<svg>" * 1000
    web.routes["/gzip"] = sends(gzip.compress(text), Content_Encoding="GZIP")
    web.routes["/bomb"] = sends(gzip.compress(b"\0" * 50_000_000), Content_Encoding="gzip")
    web.routes["/broken"] = sends(b"no gzip at all", Content_Encoding="gzip")
    web.routes["/br"] = sends(b"?", Content_Encoding="br")
    assert fetcher().fetch(web.url("/gzip"), body, LIMIT) == text
    assert web.headers[0]["Accept-Encoding"] == "identity"
    chunks: list[int] = []

    def receive(response: Response) -> None:
        chunks.extend(len(chunk) for chunk in response.chunks)

    assert rejection(fetcher(), web.url("/bomb"), receive).startswith("too_many_bytes")
    assert sum(chunks) <= LIMIT and max(chunks) <= 1 << 18
    assert [reason(fetcher(), web.url(path)) for path in ("/broken", "/br")] == ["bad_response"] * 2


DRIPS = {
    "status": b"HTTP/1.1 ",
    "header": b"HTTP/1.1 200 OK\r\nX-Long: ",
    "body": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
    "chunk size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
}


@pytest.mark.parametrize("begin", DRIPS.values(), ids=DRIPS)
def test_a_dripping_server_has_its_time(web: Web, begin: bytes):
    web.routes["/a"] = drips(begin)
    start = time.monotonic()
    message = rejection(fetcher(total_s=0.3, silence_s=5), web.url("/a"))
    assert message.startswith("timed_out") and 0.25 < time.monotonic() - start < 3
    assert web.asked == ["/a"], "no time for another try"


def test_retries_share_the_time_of_a_url(web: Web):
    def cut_after_a_while(handler: Handler) -> None:
        handler.server.closing.wait(0.1)
        handler.answer(200, b"half", length=8)

    web.routes["/a"] = cut_after_a_while
    assert rejection(fetcher(total_s=0.25, retries=20), web.url("/a")).startswith("timed_out: ")
    assert len(web.asked) <= 3


def test_a_silent_server(web: Web):
    web.routes["/a"] = in_turn(lambda handler: handler.server.closing.wait(10), sends(b"a"))
    assert fetcher(silence_s=0.4).fetch(web.url("/a"), body, LIMIT) == b"a"
    web.routes["/a"] = lambda handler: handler.server.closing.wait(10)
    message = rejection(fetcher(silence_s=0.1, retries=1), web.url("/a"))
    assert message == "timed_out: 127.0.0.1 sent nothing for 0.1 s"


def test_a_host_that_does_not_pick_up(names: Names, monkeypatch: pytest.MonkeyPatch):
    def hang(self: socket.socket, address: tuple) -> None:
        assert 0 < (self.gettimeout() or 0) <= 3
        raise TimeoutError("timed out")

    monkeypatch.setattr(connections._Timed, "connect", hang)
    names.answers = {"far.test": [[PUBLIC]]}
    assert reason(fetcher(allow_private=False, connect_s=3.0), "http://far.test/") == "timed_out"


def test_the_opt_out_of_a_site_is_heard(web: Web):
    web.routes["/a"] = sends(b"a", X_Robots_Tag="noai")
    web.routes["/b"] = sends(b"", 302, Location="/c", tdm_reservation="1")
    web.routes["/c"] = sends(b"c", X_Robots_Tag="otherbot: noai")
    assert rejection(fetcher(), web.url("/a")) == "opted_out: 127.0.0.1 sent X-Robots-Tag: noai"
    assert reason(fetcher(), web.url("/b")) == "opted_out"
    assert fetcher().fetch(web.url("/c"), body, LIMIT) == b"c"
    deaf = fetcher(obey_opt_out=False)
    assert [deaf.fetch(web.url(path), body, LIMIT) for path in ("/a", "/b")] == [b"a", b"c"]


def test_robots_are_asked_once_and_obeyed(web: Web, names: Names):
    names.answers = {"b.test": [["127.0.0.1"]]}
    rules = b"User-agent: Mill\nDisallow: /*.png$\nDisallow: /private\n"
    web.routes["/robots.txt"] = sends(rules, X_Robots_Tag="noindex")
    web.routes["/a.jpg"] = sends(b"a")
    web.routes["/go"] = sends(b"", 302, Location=web.url("/private/x", host="b.test"))
    fetch = fetcher(obey_robots=True)
    urls = [web.url(path) for path in ("/a.jpg", "/b.png", "/private/x", "/go", "/a.jpg")]
    found = fetch.fetch_all(urls, body, LIMIT)
    assert [str(one).partition(":")[0] for one in found[1:4]] == ["robots_disallowed"] * 3
    assert found[0] == found[4] == b"a"
    assert sorted(web.asked) == ["/a.jpg", "/a.jpg", "/go", "/robots.txt", "/robots.txt"]
    rude = fetcher(obey_robots=False)
    assert reason(rude, web.url("/b.png")) == "http_client_error"


ROBOTS = {
    "missing": (sends(b"", 404), None),
    "forbidden": (sends(b"", 403), None),
    "in trouble": (sends(b"", 503), "http_server_error"),
    "too busy": (sends(b"", 429), "rate_limited"),
    "moved": (sends(b"", 301, Location="/elsewhere.txt"), "robots_disallowed"),
    "moved for ever": (sends(b"", 301, Location="/robots.txt"), None),
    "long": (sends(b"user-agent: *\ndisallow: /\n" + b"#" * (600 << 10)), "robots_disallowed"),
    "too long": (sends(b"#" * (512 << 10) + b"\nuser-agent: *\ndisallow: /"), None),
    "no text": (sends(b"\xff\xfe\x00user-agent"), None),
    "broken": (CUT["length"], "connection_failed"),
}


@pytest.mark.parametrize(("route", "expected"), ROBOTS.values(), ids=ROBOTS)
def test_robots_that_are_hard_to_get(web: Web, route: Callable[[Handler], None], expected: str | None):
    web.routes["/robots.txt"] = route
    web.routes["/elsewhere.txt"] = sends(b"user-agent: *\ndisallow: /")
    web.routes["/a"] = sends(b"a")
    fetch = fetcher(obey_robots=True, retries=1)
    if expected is None:
        assert fetch.fetch(web.url("/a"), body, LIMIT) == b"a"
        return
    for _ in range(2):
        assert reason(fetch, web.url("/a")) == expected
    assert "/a" not in web.asked and web.asked.count("/robots.txt") <= 2


def test_crawl_delay_is_kept_up_to_a_limit(web: Web):
    web.routes["/robots.txt"] = sends(b"User-agent: *\nCrawl-delay: 60")
    web.routes["/a"] = sends(b"a")
    fetch = fetcher(obey_robots=True, longest_crawl_delay_s=0.2)
    assert fetch.fetch_all([web.url("/a")] * 3, body, LIMIT) == [b"a"] * 3
    starts = [when for path, when in zip(web.asked, web.started, strict=True) if path == "/a"]
    assert all(later - earlier >= 0.18 for earlier, later in zip(starts, starts[1:], strict=False))


def test_secrets_in_urls_stay_out_of_messages(web: Web, caplog: pytest.LogCaptureFixture):
    web.routes.update(
        {
            "/500": sends(b"", 500),
            "/404": sends(b"", 404),
            "/cut": CUT["length"],
            "/ssh": CUT["no http"],
            "/silent": lambda handler: handler.server.closing.wait(10),
            "/odd": lambda handler: handler.raw(b"HTTP/1.1 200 OK\r\nno header\r\n\r\n" + b"x" * 100),
            "/loop": lambda handler: handler.answer(302, Location=handler.path),
            "/noai": sends(b"", X_Robots_Tag="noai"),
            "/long": sends(b"x" * 100),
            "/br": sends(b"", Content_Encoding="br"),
            "/gzip": sends(b"no gzip", Content_Encoding="gzip"),
        }
    )
    fetch = fetcher(silence_s=0.1, retries=0)
    for path in web.routes:
        assert "s3cret" not in rejection(fetch, web.url(f"{path}?X-Signature=s3cret"), body, 50)
    assert "s3cret" not in caplog.text


def test_many_at_once_in_order_and_polite(web: Web, names: Names):
    hosts = [f"h{i}.test" for i in range(4)]
    names.answers = {host: [["127.0.0.1"]] for host in hosts}
    running: dict[str, int] = {}
    most: dict[str, int] = {}
    most_of_all = 0

    def slowly(handler: Handler) -> None:
        nonlocal most_of_all
        host = handler.headers["Host"]
        with handler.server.lock:
            running[host] = running.get(host, 0) + 1
            most[host] = max(most.get(host, 0), running[host])
            most_of_all = max(most_of_all, sum(running.values()))
        time.sleep(0.05)
        with handler.server.lock:
            running[host] -= 1
        handler.answer(200, handler.path.encode())

    paths = [f"/p?{i}" for i in range(24)]
    web.routes["/p"] = slowly
    urls = [web.url(path, host=hosts[min(i // 3, 3)]) for i, path in enumerate(paths)]
    urls[5] = web.url("/missing", host=hosts[1])
    found = fetcher(at_once=8, host_at_once=2).fetch_all(urls, body, LIMIT)
    assert isinstance(found[5], RowError)
    assert [one for i, one in enumerate(found) if i != 5] == [p.encode() for i, p in enumerate(paths) if i != 5]
    assert max(most.values()) == 2 and most_of_all >= 3


def test_a_host_with_many_urls_does_not_hold_up_the_others():
    urls = [f"http://{host}.test/{i}" for i, host in enumerate("aaabbc")]
    assert _host_by_host(urls) == [0, 3, 5, 1, 4, 2]


def test_hosts_are_forgotten_when_nothing_is_left_to_wait_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tokenmill.stages.fetch.host_queue._REMEMBERED_HOSTS", 3)
    turns = Turns(at_once=1, longest_pause_s=60.0)
    turns.pause("paused.test", 1000.0)
    for i in range(20):
        with turns.take(f"{i}.test", 0.0):
            assert len(turns._hosts) <= 3
    with pytest.raises(RowError, match="rate_limited"), turns.take("paused.test", 0.0):
        pass


def test_requests_to_a_host_are_apart(web: Web):
    web.routes["/a"] = sends(b"a")
    fetcher(host_delay_s=0.1, host_at_once=4).fetch_all([web.url("/a")] * 4, body, LIMIT)
    assert all(later - earlier >= 0.08 for earlier, later in zip(web.started, web.started[1:], strict=False))


def certificate(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """A certificate for `name` that signs itself, as a file to trust and a server's context."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "public.pem", folder / "private.pem"
    public.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return public, context


def test_tls_is_that_of_the_name(tmp_path: Path, names: Names, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ssl, "create_default_context", create_default_context)
    trusted, context = certificate(tmp_path, "images.test")
    asked_for: list[str | None] = []
    context.sni_callback = lambda connection, name, _: asked_for.append(name)
    web = Web(context)
    try:
        web.routes["/a"] = sends(b"a" * 100_000)
        web.routes["/drip"] = drips(DRIPS["body"])
        names.answers = {"images.test": [["127.0.0.1"]], "other.test": [["127.0.0.1"]]}
        assert reason(fetcher(), web.url("/a", host="images.test")) == "bad_certificate"
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        assert len(fetcher().fetch(web.url("/a", host="images.test"), body, LIMIT)) == 100_000
        assert asked_for[-1] == "images.test" and web.headers[-1]["Host"] == f"images.test:{web.server_port}"
        assert rejection(fetcher(), web.url("/a", host="other.test")).startswith(
            "bad_certificate: other.test: Hostname"
        )
        start = time.monotonic()
        assert reason(fetcher(total_s=0.4), web.url("/drip", host="images.test")) == "timed_out"
        assert time.monotonic() - start < 3
    finally:
        web.stop()
