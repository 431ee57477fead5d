"""What a site asks of crawlers: robots.txt, and the headers that say no to the training of models.

robots.txt is read by protego, which follows RFC 9309: the longest rule that matches wins, `*` and `$` are wildcards,
groups of one agent are joined. Python's urllib.robotparser takes the first rule that matches. Headers: X-Robots-Tag
(noai, noimageai and the older words for "not in any index"), for all agents or for ours by name, and the TDM
Reservation Protocol's tdm-reservation.
"""

import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from protego import Protego
from urllib3 import HTTPHeaderDict

from tokenmill.stages.table.rows import RowError

MAX_ROBOTS_BYTES = 512 << 10  # RFC 9309 2.5: at least 500 KiB are read, the rest may be left

_OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_KEPT_S = 24 * 3600.0  # RFC 9309 2.4: no longer than a day
_FAILURE_KEPT_S = 300.0
_KEPT_HOSTS = 2048
_VERSIONED = re.compile(r"^(\s*user-agent\s*:\s*[a-z_-]+)/.*$", re.IGNORECASE | re.MULTILINE)


def agent_token(user_agent: str) -> str:
    """The part of a User-Agent that sites call an agent by, in lower case: `Mill/1.0 (+https://...)` -> `mill`."""
    found = re.match(r"[A-Za-z_-]+", user_agent)
    return found.group().lower() if found else ""


class Rules:
    """What a robots.txt, `text`, says to one agent, a token in lower case; an empty one forbids nothing.

    `delay_s`: the seconds between requests that it asks for. A version behind an agent's name, which RFC 9309 knows
    not, names that agent all the same.
    """

    def __init__(self, text: str = "", agent: str = ""):
        self._parsed, self._agent = Protego.parse(_VERSIONED.sub(r"\1", text)), agent
        self.delay_s = self._parsed.crawl_delay(agent) or 0.0

    def allows(self, path: str) -> bool:
        """Whether `path` (with its query) may be fetched: the longest pattern decides, of equals the kinder one."""
        return self._parsed.can_fetch(f"http://site{path}", self._agent)


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
