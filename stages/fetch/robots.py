"""What a site asks of crawlers: robots.txt, and the headers that say no to the training of models.

robots.txt is read by RFC 9309: the longest rule that matches wins, `*` and `$` are wildcards, groups of one agent are
joined. Python's urllib.robotparser (3.11) takes the first rule that matches and knows no wildcards, so that
`Disallow: /*.jpg$` forbids nothing there. Headers: X-Robots-Tag (noai, noimageai and the older words for "not in any
index"), for all agents or for ours by name, and the TDM Reservation Protocol's tdm-reservation.
"""

import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from urllib.parse import quote

from urllib3 import HTTPHeaderDict

from tokenmill.stages.table.rows import RowError

MAX_ROBOTS_BYTES = 512 << 10  # RFC 9309 2.5: at least 500 KiB are read, the rest may be left

_OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_KEPT_S = 24 * 3600.0  # RFC 9309 2.4: no longer than a day
_FAILURE_KEPT_S = 300.0
_KEPT_HOSTS = 2048
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")


def agent_token(user_agent: str) -> str:
    """The part of a User-Agent that sites call an agent by, in lower case: `Mill/1.0 (+https://...)` -> `mill`."""
    found = re.match(r"[A-Za-z_-]+", user_agent)
    return found.group().lower() if found else ""


def _normal(path: str) -> str:
    """One spelling for paths that mean the same: percent signs only where needed, in capitals."""

    def shorten(escape: re.Match) -> str:
        character = chr(int(escape.group(1), 16))
        return character if _UNRESERVED.fullmatch(character) else escape.group().upper()

    return quote(re.sub(r"%([0-9A-Fa-f]{2})", shorten, path), safe="!\"#$%&'()*+,/:;<=>?@[\\]^`{|}~")


def _matches(pattern: str, path: str) -> bool:
    """Linear in both: a regular expression made of a hostile pattern would not be."""
    anchored = pattern.endswith("$")
    first, *others = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    at = len(first)
    if not others:
        return not anchored or at == len(path)
    *middle, last = others
    for part in middle:
        found = path.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return path.endswith(last) and len(path) - len(last) >= at if anchored else path.find(last, at) >= 0


@dataclass(frozen=True)
class Rules:
    """What a robots.txt says to one agent: (pattern, allowed) pairs, and the seconds between requests it asks for."""

    patterns: tuple[tuple[str, bool], ...] = ()
    delay_s: float = 0.0

    def allows(self, path: str) -> bool:
        """Whether `path` (with its query) may be fetched: the longest pattern decides, of equals the kinder one."""
        path = _normal(path)
        found = [(len(pattern), allowed) for pattern, allowed in self.patterns if _matches(pattern, path)]
        return max(found)[1] if found else True


def parse(text: str, agent: str) -> Rules:
    """The rules of `text`, a robots.txt, for `agent` (a token in lower case), else for all agents."""
    patterns: dict[str, list[tuple[str, bool]]] = {}
    delays: dict[str, float] = {}
    current: list[str] = []
    naming = False
    for line in text.splitlines():
        key, colon, value = (part.strip() for part in line.partition("#")[0].partition(":"))
        if not colon:
            continue
        key = key.lower()
        if key == "user-agent":
            current = [*current, _agent(value)] if naming else [_agent(value)]
            patterns.setdefault(current[-1], [])
            naming = True
        elif key in ("allow", "disallow"):
            naming = False
            if value:
                for name in current:
                    patterns[name].append((_normal(value), key == "allow"))
        elif key == "crawl-delay":
            for name in current:
                delays[name] = _seconds(value)
    mine = agent if agent in patterns else "*"
    return Rules(tuple(patterns.get(mine, ())), delays.get(mine, 0.0))


def _agent(value: str) -> str:
    return "*" if value.startswith("*") else agent_token(value)


def _seconds(value: str) -> float:
    try:
        delay_s = float(value)
    except ValueError:
        return 0.0
    return delay_s if 0 <= delay_s < math.inf else 0.0


def opted_out(headers: HTTPHeaderDict, agent: str) -> str | None:
    """The header by which a site keeps what it sends from being used by `agent`; null when there is none."""
    for line in headers.getlist("x-robots-tag"):
        named = None
        for part in line.lower().split(","):
            before, colon, after = (word.strip() for word in part.partition(":"))
            if colon and before not in _VALUED:
                named, before = before, after
            if before in _OPT_OUT and (named is None or agent_token(named) == agent):
                return f"X-Robots-Tag: {before}"
    if any(value.strip() == "1" for value in headers.getlist("tdm-reservation")):
        return "tdm-reservation: 1"
    return None


class RobotsCache:
    """Each site's rules, loaded once by whichever thread comes first, while the others wait for them.

    `load` maps a site (`https://host:port`) to its rules and raises RowError when they cannot be known; all urls of
    that site then fail for the same reason, for five minutes: by RFC 9309 2.3.1.4 everything is forbidden until the
    file can be reached.
    """

    def __init__(self, load: Callable[[str], Rules]):
        self._load = load
        self._lock = threading.Lock()
        self._sites: dict[str, tuple[float, Future[Rules]]] = {}

    def of(self, site: str) -> Rules:
        """The rules of `site`. Raises RowError as `load` did."""
        with self._lock:
            until, rules = self._sites.get(site, (-math.inf, Future()))
            is_mine = until <= time.monotonic()
            if is_mine:
                rules = Future()
                self._keep(site, math.inf, rules)
        if is_mine:
            self._fill(site, rules)
        try:
            return rules.result()
        except RowError as error:  # raised in many threads: each gets its own
            columns: Mapping[str, str] = error.columns
            raise RowError(columns["reject_reason"], columns["reject_detail"]) from None

    def _fill(self, site: str, rules: Future[Rules]) -> None:
        kept_s = _FAILURE_KEPT_S
        try:
            rules.set_result(self._load(site))
            kept_s = _KEPT_S
        except RowError as error:
            rules.set_exception(error)
        except BaseException as error:
            kept_s = 0.0
            rules.set_exception(error)
        with self._lock:
            self._keep(site, time.monotonic() + kept_s, rules)

    def _keep(self, site: str, until: float, rules: Future[Rules]) -> None:
        self._sites.pop(site, None)
        self._sites[site] = until, rules
        while len(self._sites) > _KEPT_HOSTS:
            del self._sites[next(iter(self._sites))]
