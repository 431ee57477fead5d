"""What may be fetched over http(s), and how patiently: what is not how, so a new timeout redoes nothing."""

from pydantic import Field

from tokenmill.storage.identity import Config, Resources


class FetchConfig(Config):
    """What may be fetched, and in whose name."""

    user_agent: str = Field(
        default="tokenmill/0.1",
        pattern=r"^[A-Za-z_-]+(/[!-~]+)?( [ -~]+)?$",
        description="who asks; its first word is the name that robots.txt and X-Robots-Tag may call. Add a page or an "
        "address where you can be reached: hosts block whom they cannot ask",
    )
    obey_robots: bool = Field(default=True, description="false: fetches what robots.txt asks crawlers to leave")
    obey_opt_out: bool = Field(
        default=True, description="false: keeps media whose X-Robots-Tag or tdm-reservation says no to training"
    )
    allow_private: bool = Field(
        default=False,
        description="true: a list of urls, or a redirect, can make workers ask machines of your own network",
    )
    max_redirects: int = Field(
        default=5,
        ge=0,
        le=50,
        description="too small: short links and moved files are rejected as too_many_redirects; too large: loops cost "
        "as many requests",
    )


class FetchPace(Resources):
    """How patiently and how fast one worker fetches; several workers ask a host that many times as often."""

    at_once: int = Field(
        default=16,
        gt=0,
        description="too small: the worker waits for slow hosts; too large: name servers and the network give out",
    )
    host_at_once: int = Field(
        default=2, gt=0, description="too small: lists of one host take long; too large: the host blocks you"
    )
    host_delay_s: float = Field(
        default=0.1,
        ge=0,
        description="between the starts of two requests to a host; too small: the host blocks you; too large: lists of "
        "one host take that long for each file",
    )
    longest_crawl_delay_s: float = Field(
        default=10.0,
        ge=0,
        description="of the delays that robots.txt asks for; too small: less than hosts ask for; too large: one host "
        "holds up all others",
    )
    connect_s: float = Field(
        default=10.0, gt=0, description="too small: far hosts are timed_out; too large: dead ones hold a thread"
    )
    silence_s: float = Field(
        default=30.0,
        gt=0,
        description="between two packets; too small: slow hosts are timed_out; too large: hung ones wait",
    )
    total_s: float = Field(
        default=600.0,
        gt=0,
        description="for one url with its redirects and retries, without the waits in between; too small: long videos "
        "are timed_out; too large: a server that sends byte by byte holds a thread",
    )
    retries: int = Field(
        default=2, ge=0, description="too small: passing faults reject media; too large: dead hosts are asked in vain"
    )
    backoff_s: float = Field(
        default=1.0,
        ge=0,
        description="before the first retry, doubled for each further one, give or take a half; too small: a host in "
        "trouble is retried before it recovers; too large: threads sleep",
    )
    longest_pause_s: float = Field(
        default=60.0,
        ge=0,
        description="of the pauses that hosts ask for (Retry-After); too small: their urls are rejected as "
        "rate_limited; too large: threads sleep",
    )
    retry_failed: bool = Field(
        default=False,
        description="true: every run retries urls whose server failed; false: only when their list changes",
    )
