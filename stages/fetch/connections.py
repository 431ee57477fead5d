"""HTTP connections that reach public addresses only, and keep a deadline however slowly the other side sends.

The address is judged where the connection is made: a name is resolved once, and the socket goes to the very address
that was judged, so that a name which points elsewhere a moment later (DNS rebinding), or a number in any spelling
(`http://2130706433/`, `http://0177.1/`), gains nothing. Host header, SNI and certificate stay those of the name.
Timeouts of sockets limit the silence between two packets; a server that sends a byte now and then would hold a worker
for days, in the middle of a header too. So each receive asks how much of its thread's time is left.
"""

import ipaddress
import math
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from tokenmill.stages.table.rows import RowError, words

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# What the interpreter's registry calls global, and is not: NAT64 inside a network (RFC 8215), a cloud's own services.
_ALSO_PRIVATE = (ipaddress.ip_network("64:ff9b:1::/48"), ipaddress.ip_network("168.63.129.16/32"))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_POOLS = 64  # idle connections are kept open to so many hosts


class TransientError(RowError):
    """A failure that another try, now or in a later run, may not meet."""


class _Clock(threading.local):
    until = math.inf


_clock = _Clock()


class Budget:
    """The seconds that one url may take, however many requests it takes."""

    def __init__(self, limit_s: float):
        self._limit_s = limit_s
        self._left_s = limit_s

    @contextmanager
    def spend(self) -> Iterator[None]:
        """Time is running: when it is over, sockets of `pools` raise TimeoutError in this thread.

        Raises RowError timed_out when nothing is left.
        """
        if self._left_s <= 0:
            raise RowError("timed_out", f"not done within {self._limit_s:g} s")
        start = time.monotonic()
        _clock.until = start + self._left_s
        try:
            yield
        finally:
            _clock.until = math.inf
            self._left_s -= time.monotonic() - start


def is_late() -> bool:
    """Whether this thread's time is over."""
    return time.monotonic() >= _clock.until


def _time_left() -> float:
    left_s = _clock.until - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the time limit has passed")
    return left_s


class _Timed(socket.socket):
    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(min(self.gettimeout() or math.inf, _time_left()))
        return super().recv_into(*args, **kwargs)


class _TimedTls(_Timed, ssl.SSLSocket):
    pass


def _inside(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that packets to `address` end up at, where it only wraps one."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


def is_public(text: str) -> bool:
    """Whether `text`, an address in numbers, is one of the internet: not private, loopback, link-local, reserved,
    multicast or shared, nor an IPv6 wrapper around such a one."""
    address: _Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        address = _inside(address) or address
    if any(address in network for network in _ALSO_PRIVATE if network.version == address.version):
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.is_site_local:
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _connect(host: str, port: int, timeout_s: float, allow_private: bool) -> socket.socket:
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            raise RowError("no_such_host", f"{host}: {words(error)}") from error
        raise TransientError("connection_failed", f"{host} could not be looked up: {words(error)}") from error
    except UnicodeError as error:
        raise RowError("bad_url", f"{host!r} is not the name of a host") from error
    open_to_us = [entry for entry in found if allow_private or is_public(str(entry[4][0]))]
    if not open_to_us:
        raise RowError("private_address", f"{host} is at {found[0][4][0]}, not a public address; see allow_private")
    failure: OSError = OSError("no address")
    for family, _, _, _, address in open_to_us:
        connection = _Timed(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(min(timeout_s, _time_left()))
            connection.connect(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except OSError as error:
            connection.close()
            failure = error
    reason = "timed_out" if isinstance(failure, TimeoutError) else "connection_failed"
    raise TransientError(reason, f"{host} port {port}: {words(failure)}") from failure


def pools(allow_private: bool, host_at_once: int) -> urllib3.PoolManager:
    """urllib3's pools over such connections. Proxy variables are not read: a proxy would look names up where nobody
    judges them.

    Opening a connection raises RowError (private_address, no_such_host, bad_url) or TransientError (connection_failed,
    timed_out); all else is urllib3's own.
    """

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return _connect(self._dns_host, self.port, self.timeout or math.inf, allow_private)

    class Tls(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return _connect(self._dns_host, self.port, self.timeout or math.inf, allow_private)

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class TlsPool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Tls

    context = ssl.create_default_context()
    context.sslsocket_class = _TimedTls
    manager = urllib3.PoolManager(num_pools=_POOLS, maxsize=host_at_once, ssl_context=context)
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": TlsPool}
    return manager
