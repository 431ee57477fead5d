"""Fetch urls over http and https, as a guest: what a stage calls where a source lists urls.

The caller hands over a function that takes a `Response` and reads its chunks; it is called once more, with a fresh
response, when a connection breaks in the middle, so it has to start from nothing each time. What it returns is
returned, what it raises is raised. Whatever is the url's fault is a RowError; those marked * were met after all retries
and may not stand tomorrow:

    bad_url                                     not http(s), no host, a user name or password inside
    private_address, no_such_host               where the name leads
    bad_certificate, connection_failed*, timed_out*
    http_client_error (4xx), http_server_error* (5xx), rate_limited* (429, or a host that asked for a long pause)
    bad_response, too_many_redirects, too_many_bytes
    robots_disallowed, opted_out                what the site asks for (stages/fetch/robots.py)

A robots.txt that cannot be known gives its own reason to every url of its site: 5xx, 429, no connection. Any other 4xx
means that there are no rules (RFC 9309 2.3.1.3; buckets answer 403 for a file that is not there).
Messages name the host, never the url: its query may be a signature.
"""

import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar
from urllib.parse import urljoin

import urllib3
from urllib3.exceptions import InvalidHeader, LocationParseError
from urllib3.util import Retry, Timeout, Url, parse_url

from tokenmill.stages.fetch.config import FetchConfig, FetchPace
from tokenmill.stages.fetch.connections import Budget, TransientError, pools
from tokenmill.stages.fetch.host_queue import Turns
from tokenmill.stages.fetch.response import REDIRECTS, Response, failures, refusal
from tokenmill.stages.fetch.robots import MAX_ROBOTS_BYTES, RobotsCache, Rules, agent_token, opted_out
from tokenmill.stages.table.rows import RowError

# Reasons that may not stand tomorrow.
TRANSIENT = frozenset({"connection_failed", "timed_out", "http_server_error", "rate_limited"})

T = TypeVar("T")

_LONGEST_BACKOFF_S = 60.0
_ROBOTS_REDIRECTS = 5  # RFC 9309 2.3.1.2
_ROBOTS_S = 30.0
_PAUSING = frozenset({429, 503})


class Fetcher:
    """Fetches for all threads of one worker; asks each host as politely as `pace` says."""

    def __init__(self, config: FetchConfig, pace: FetchPace | None = None):
        # Its warnings about broken headers carry the whole url.
        logging.getLogger("urllib3.connection").setLevel(logging.ERROR)
        self._config = config
        self._pace = pace or FetchPace()
        self._agent = agent_token(config.user_agent)
        self._pools = pools(config.allow_private, self._pace.host_at_once)
        self._turns = Turns(self._pace.host_at_once, self._pace.longest_pause_s)
        self._robots = RobotsCache(self._load_rules)

    def fetch(self, url: str, receive: Callable[[Response], T], max_bytes: int) -> T:
        """What `receive` makes of the response, in this thread; it may be called anew after a broken connection.

        Raises RowError for what is the url's fault (module), and whatever `receive` raises.
        """
        budget = Budget(self._pace.total_s)
        return self._patiently(lambda: self._follow(url, receive, max_bytes, budget))

    def fetch_all(self, urls: list[str], receive: Callable[[Response], T], max_bytes: int) -> list[T | RowError]:
        """`fetch` for each of `urls`, many at once, in their order; a RowError takes the place of what failed."""

        def one(i: int) -> tuple[int, T | RowError]:
            try:
                return i, self.fetch(urls[i], receive, max_bytes)
            except RowError as error:
                return i, error

        with ThreadPoolExecutor(self._pace.at_once) as threads:
            found = dict(threads.map(one, _host_by_host(urls)))
        return [found[i] for i in range(len(urls))]

    def _patiently(self, once: Callable[[], T]) -> T:
        for attempt in range(self._pace.retries):
            try:
                return once()
            except TransientError:
                backoff_s = min(self._pace.backoff_s * 2**attempt, _LONGEST_BACKOFF_S)
                time.sleep(backoff_s * random.uniform(0.5, 1.5))
        return once()

    def _follow(
        self, asked: str, receive: Callable[[Response], T], max_bytes: int, budget: Budget, is_robots: bool = False
    ) -> T:
        """One attempt, through all redirects. A robots.txt itself is fetched without asking leave."""
        url = _parse(asked)
        max_redirects = _ROBOTS_REDIRECTS if is_robots else self._config.max_redirects
        for _ in range(max_redirects + 1):
            host = url.host or ""
            delay_s = 0.0 if is_robots else self._ask_leave(url)
            with self._turns.take(host, delay_s), budget.spend(), closing(self._get(url)) as answer:
                if not is_robots and self._config.obey_opt_out:
                    header = opted_out(answer.headers, self._agent)
                    if header is not None:
                        raise RowError("opted_out", f"{host} sent {header}")
                if answer.status not in REDIRECTS:
                    return receive(Response(asked, url, answer, max_bytes, self._pace.silence_s))
                # http.client reads headers as latin-1; what servers mean is utf-8.
                location = answer.headers["location"].encode("latin-1", "replace").decode("utf-8", "replace")
            url = _parse(location, url)
        raise RowError("too_many_redirects", f"more than {max_redirects}, the last one to {url.host}")

    def _ask_leave(self, url: Url) -> float:
        """The seconds to keep between requests to the url's host. Raises RowError where its robots.txt says no."""
        if not self._config.obey_robots:
            return self._pace.host_delay_s
        rules = self._robots.of(f"{url.scheme}://{url.netloc}")
        if not rules.allows(url.request_uri):
            raise RowError("robots_disallowed", f"robots.txt of {url.host} asks {self._agent} to stay away")
        return max(self._pace.host_delay_s, min(rules.delay_s, self._pace.longest_crawl_delay_s))

    def _get(self, url: Url) -> urllib3.BaseHTTPResponse:
        """An answer with a body to read, or with a place to go. Raises RowError for all others."""
        host = url.host or ""
        with failures(host, self._pace.silence_s):
            answer = self._pools.connection_from_host(host, url.port, url.scheme).urlopen(
                "GET",
                url.request_uri,
                headers={"User-Agent": self._config.user_agent, "Accept": "*/*", "Accept-Encoding": "identity"},
                retries=False,
                redirect=False,
                preload_content=False,
                timeout=Timeout(connect=self._pace.connect_s, read=self._pace.silence_s),
            )
        failure = refusal(host, answer)
        if failure is None:
            return answer
        answer.close()
        if answer.status in _PAUSING:
            self._turns.pause(host, _retry_after_s(answer.headers.get("retry-after", "")))
        raise failure

    def _load_rules(self, site: str) -> Rules:
        def receive(response: Response) -> Rules:
            text = b""
            for chunk in response.chunks:
                text += chunk
                if len(text) >= MAX_ROBOTS_BYTES:
                    break
            return Rules(text.decode("utf-8-sig", "replace"), self._agent)

        budget = Budget(min(_ROBOTS_S, self._pace.total_s))
        try:
            return self._patiently(
                lambda: self._follow(f"{site}/robots.txt", receive, sys.maxsize, budget, is_robots=True)
            )
        except RowError as error:
            reason, detail = error.columns["reject_reason"], error.columns["reject_detail"]
            if reason in ("http_client_error", "too_many_redirects"):
                return Rules()
            raise RowError(reason, f"robots.txt: {detail}") from error


def _host_by_host(urls: list[str]) -> list[int]:
    """The order to fetch in: one url of each host, then a second one, so that threads wait in line at a host only
    when the others have nothing left to do."""
    seen: Counter[str] = Counter()
    turns = []
    for i, url in enumerate(urls):
        host = url.partition("//")[2].partition("/")[0]
        turns.append((seen[host], i))
        seen[host] += 1
    return [i for _, i in sorted(turns)]


def _parse(text: str, base: Url | None = None) -> Url:
    """The url that is asked for; `base` is where a relative one was found. The one parser here: what it calls the host
    is what is connected to."""
    try:
        url = parse_url(urljoin(base.url, text) if base else text.strip())
    except (LocationParseError, ValueError) as error:
        raise RowError("bad_url", "not a url by RFC 3986") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise RowError("bad_url", "not a url that begins with http:// or https:// and a host")
    if url.auth is not None:
        raise RowError("bad_url", f"carries a user name or password for {url.host}; list signed urls instead")
    return url


def _retry_after_s(value: str) -> float:
    try:
        return Retry().parse_retry_after(value)
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0
