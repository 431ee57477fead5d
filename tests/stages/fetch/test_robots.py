"""robots.txt by RFC 9309, and the headers that opt out."""

import threading

import pytest
from urllib3 import HTTPHeaderDict

from tokenmill.stages.fetch.robots import RobotsCache, Rules, agent_token, opted_out
from tokenmill.stages.table.rows import RowError

EXAMPLE = """\
\ufeff# RFC 9309 5.1, and what it says elsewhere
User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot

User-agent: FooBot/2.0
Sitemap: https://example.com/sitemap.xml
Allow: /joined
"""


@pytest.mark.parametrize(
    ("agent", "path", "allowed"),
    [
        ("other", "/a.gif", False),
        ("other", "/a.gif?size=2", True),
        ("other", "/a.gifs", True),
        ("other", "/example/", False),
        ("other", "/publications/a.gif", True),
        ("foobot", "/", False),
        ("foobot", "/example/page.html", True),
        ("foobot", "/joined/by/both/groups", True),
        ("barbot", "/example/page.html", False),
        ("bazbot", "/example/page.html", False),
        ("bazbot", "/example/other.gif", True),
        ("quxbot", "/example/", True),
    ],
)
def test_groups_and_the_longest_match(agent: str, path: str, allowed: bool):
    assert Rules(EXAMPLE.removeprefix("\ufeff"), agent).allows(path) is allowed


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/fish", "/fish.html", True),
        ("/fish", "/Fish", False),
        ("/fish*.php", "/fishheads/catfish.php?id=1", True),
        ("/*.php$", "/a.php/b.php", True),
        ("/*.php$", "/a.php?b", False),
        ("/a$", "/a", True),
        ("/a$", "/ab", False),
        ("/a*a$", "/a", False),
        ("/a*a$", "/aa", True),
        ("/", "/", True),
        ("/foo/bar?baz=http://foo.bar", "/foo/bar?baz=http://foo.bar", True),
        ("/foo/bar/\u30c4", "/foo/bar/%E3%83%84", True),
        ("/foo/bar/%e3%83%84", "/foo/bar/%E3%83%84", True),
        ("/foo/bar/%62%61%7A", "/foo/bar/baz", True),
        ("/a%2fb", "/a/b", False),
    ],
)
def test_patterns(pattern: str, path: str, matches: bool):
    assert Rules(f"user-agent: *\ndisallow: {pattern} # why", "mill").allows(path) is not matches


def test_a_hostile_pattern_takes_no_time():
    rules = Rules("user-agent: *\ndisallow: /" + "*a" * 5000 + "b$", "mill")
    assert rules.allows("/" + "a" * 20_000)


def test_equal_lengths_and_empty_rules_are_kind():
    assert Rules("user-agent: *\ndisallow: /a\nallow: /a", "mill").allows("/a")
    assert Rules("user-agent: *\ndisallow:", "mill").allows("/a")
    assert Rules("disallow: /", "mill").allows("/a")
    assert Rules("<!DOCTYPE html><p style='color: red'>Not found</p>", "mill").allows("/a")


@pytest.mark.parametrize(("value", "delay_s"), [("2.5", 2.5), ("-1", 0), ("inf", 0), ("nan", 0), ("soon", 0)])
def test_crawl_delay(value: str, delay_s: float):
    text = f"User-agent: mill\nCrawl-delay: {value}\nUser-agent: other\nDisallow: /"
    mine, other, third = (Rules(text, name) for name in ("mill", "other", "third"))
    assert (mine.delay_s, other.delay_s, third.delay_s) == (delay_s, 0, 0)
    assert (mine.allows("/"), other.allows("/"), third.allows("/")) == (True, False, True)


def test_agent_token():
    assert agent_token("Token-Mill/0.1 (+https://example.org)") == "token-mill"


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ([], False),
        ([("X-Robots-Tag", "noai")], True),
        ([("x-robots-tag", "NoImageAI")], True),
        ([("X-Robots-Tag", "nofollow, noarchive")], False),
        ([("X-Robots-Tag", "nofollow, noindex")], True),
        ([("X-Robots-Tag", "all"), ("X-Robots-Tag", "none")], True),
        ([("X-Robots-Tag", "googlebot: noindex, noai")], False),
        ([("X-Robots-Tag", "Mill: noai")], True),
        ([("X-Robots-Tag", "otherbot: nofollow, mill: noimageindex")], True),
        ([("X-Robots-Tag", "mill: nofollow, otherbot: noai")], False),
        ([("X-Robots-Tag", "unavailable_after: 25 Jun 2030 15:00:00 PST, noai")], True),
        ([("tdm-reservation", " 1 ")], True),
        ([("tdm-reservation", "0")], False),
    ],
)
def test_opted_out(headers: list[tuple[str, str]], refused: bool):
    assert (opted_out(HTTPHeaderDict(headers), "mill") is not None) is refused


def test_rules_are_loaded_once_by_one_of_many_threads():
    entered, go_on, loaded, got, rules = threading.Event(), threading.Event(), [], [], Rules()

    def load(site: str) -> Rules:
        loaded.append(site)
        entered.set()
        go_on.wait(10)
        return rules

    cache = RobotsCache(load)
    threads = [threading.Thread(target=lambda: got.append(cache.of("http://a.test"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    entered.wait(10)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert loaded == ["http://a.test"] and got == [rules] * 4


def test_failures_are_kept_for_a_while_and_bugs_are_not(monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr("tokenmill.stages.fetch.robots.time.monotonic", lambda: now)
    outcomes: list[Exception] = [RowError("timed_out", "slow"), KeyError("bug")]

    def load(site: str) -> Rules:
        if outcomes:
            raise outcomes.pop(0)
        return Rules()

    cache = RobotsCache(load)
    for _ in range(2):
        with pytest.raises(RowError, match="timed_out: slow"):
            cache.of("http://a.test")
    now = 301.0
    with pytest.raises(KeyError):
        cache.of("http://a.test")
    assert isinstance(cache.of("http://a.test"), Rules)


def test_rules_are_kept_for_a_day_and_of_so_many_sites(monkeypatch: pytest.MonkeyPatch):
    now, loaded = 0.0, []
    monkeypatch.setattr("tokenmill.stages.fetch.robots.time.monotonic", lambda: now)
    monkeypatch.setattr("tokenmill.stages.fetch.robots._KEPT_HOSTS", 2)

    def load(site: str) -> Rules:
        loaded.append(site)
        return Rules()

    cache = RobotsCache(load)
    cache.of("a")
    now = 23 * 3600.0
    cache.of("a")
    now = 25 * 3600.0
    for site in "abc":
        cache.of(site)
    assert loaded == ["a", "a", "b", "c"]
    cache.of("b")
    cache.of("a")
    assert loaded == ["a", "a", "b", "c", "a"]
