"""One run at a time on a root: the object `<root>/runs/lease` names the run that may write there, while it lives.

Taken and taken over by conditional writes, so that of two runs one wins; renewed every few seconds by a thread. After
kill -9 on this machine the next run looks whether the process lives and goes on at once; from another machine it
watches the lease, and takes it over when it stood still for `STALE_S`. A run that lost its lease commits nothing more.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.storage import object_store
from tokenmill.storage.failures import advice
from tokenmill.storage.object_store import StoreError

RENEW_S = 5.0
STALE_S = 30.0  # too small: a run that waits for its store is taken for dead; too large: a dead one blocks that long
_LOOK_S = 1.0

Telling = Callable[[], dict[str, Any] | None]  # how far a run is


def new_run_id() -> str:
    """The time in UTC to the millisecond, so that ids sort by it, and four random digits."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%d-%H%M%S}{now.microsecond // 1000:03d}-{secrets.token_hex(2)}"


def at_work(root: str) -> dict[str, Any] | None:
    """The run that holds the lease of `root`: `run_id`, `command`, `host`, `pid`, `since` and `silent_s`, the seconds
    since it renewed it; `progress` then, where it tells it (pipeline/reports/progress.py). None when there is none, or
    its process is dead. Writes nothing.
    """
    uri = storage.join(storage.absolute(root), "runs", "lease")
    found = storage.read_bytes(uri) if storage.exists(uri) else b""
    owner = _owner_in(found)
    if not owner or (owner["machine"] == _machine() and not _lives(owner)):
        return None
    silent_s = max(0.0, time.time() - owner["renewed"] / 1e9)
    told = {name: owner[name] for name in ("run_id", "command", "host", "pid", "since")}
    return told | {"silent_s": silent_s, "progress": owner.get("progress")}


@contextmanager
def held(
    catalog: Catalog,
    run_id: str,
    command: str,
    progress: Telling = lambda: None,
    wait_s: float = 0.0,
    on_wait: Callable[[str], None] = lambda who: None,
) -> Iterator[None]:
    """The lease of the catalog's root for the length of a run; the tables refuse to commit once it is lost. Each
    renewal holds what `progress` says. Another run at work is waited for up to `wait_s`; `on_wait` gets its name.

    Raises CatalogError before any work, naming the other run when one is at work, or saying why the root cannot be
    written.
    """
    lease = _Lease(catalog.root, run_id, command, progress)
    lease.take(wait_s, on_wait)
    for table in catalog:
        table.guard = lease.check
    renewal = threading.Thread(target=lease.renew, name="lease", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        for table in catalog:
            table.guard = None
        lease.ended.set()
        renewal.join()
        lease.give_back()


class _RefusedError(CatalogError):
    """Another run, `who`, has the lease."""

    def __init__(self, root: str, who: str):
        super().__init__(
            f"{root}: {who} is at work here; wait for it or end it, then run the same command again; "
            "cluster.root_wait_s waits for it by itself"
        )
        self.who = who


class _Lease:
    def __init__(self, root: str, run_id: str, command: str, progress: Telling):
        self.uri = storage.join(root, "runs", "lease")
        self.ended = threading.Event()
        self._root, self._lost, self._progress = root, False, progress
        self._owner: dict[str, Any] = {
            "run_id": run_id,
            "command": command,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "process_started": _process_started(os.getpid()),
            "since": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        }
        self._written = b""

    def take(self, wait_s: float = 0.0, on_wait: Callable[[str], None] = lambda who: None) -> None:
        """Write the lease where it is free or its owner is dead. Raises CatalogError, also when nothing can be written
        under the root.
        """
        deadline = time.monotonic() + wait_s
        try:
            if storage.is_remote(self._root):
                object_store.check(self._root)
            found: bytes | None = None
            while not self._write(found):
                found = self._free(deadline, on_wait)
        except StoreError as error:
            raise CatalogError(f"root: {error}") from None
        except OSError as error:
            what = advice(error, "check the path and your permission to write")
            raise CatalogError(f"root: {self._root}: cannot be written: {error}; {what}") from None

    def check(self) -> None:
        """Raise CatalogError when another run has taken the lease over."""
        if self._lost:
            raise CatalogError(
                f"{self._root}: another run took over, because this one could not renew {self.uri} for {STALE_S:g} s; "
                "nothing more is committed; run the same command again when the other has ended"
            )

    def renew(self) -> None:
        """Write the lease anew every few seconds, until the run ends or the lease is another's."""
        while not self._lost and not self.ended.wait(RENEW_S):
            try:
                self._lost = not self._write(self._written)
            except (OSError, StoreError):
                continue  # the store may answer again before the lease is stale

    def give_back(self) -> None:
        """Leave the lease empty, which is free; one that cannot be reached becomes stale by itself."""
        with suppress(OSError, StoreError):
            storage.swap_bytes(self.uri, b"", self._written)

    def _read(self) -> bytes | None:
        try:
            return storage.read_bytes(self.uri)
        except FileNotFoundError:
            return None

    def _write(self, expected: bytes | None) -> bool:
        now = {"renewed": time.time_ns(), "progress": self._progress()}
        data = json.dumps(self._owner | now, indent=1).encode()
        is_ours = storage.swap_bytes(self.uri, data, expected)
        if is_ours:
            self._written = data
        return is_ours

    def _free(self, deadline: float, on_wait: Callable[[str], None]) -> bytes | None:
        """What stands where the lease may be taken. Waits for a run at work until `deadline`, then raises
        _RefusedError.
        """
        told = ""
        while True:
            found = self._read()
            try:
                self._wait_for_death(found or b"")
                return found
            except _RefusedError as refused:
                if time.monotonic() >= deadline:
                    raise
                if told != refused.who:
                    told = refused.who
                    on_wait(told)
                time.sleep(_LOOK_S)

    def _wait_for_death(self, found: bytes) -> None:
        owner = _owner_in(found)
        if not owner:
            return
        if owner["machine"] == _machine():
            if _lives(owner):
                raise self._refused(owner)
            return
        deadline = time.monotonic() + STALE_S
        while time.monotonic() < deadline:
            time.sleep(_LOOK_S)
            if (now := self._read()) != found:
                if now:
                    raise self._refused(owner)
                return

    def _refused(self, owner: dict[str, Any]) -> "_RefusedError":
        return _RefusedError(
            self._root,
            f"run {owner['run_id']} (`tokenmill {owner['command']}`, host {owner['host']}, pid {owner['pid']}, since "
            f"{owner['since']})",
        )


def _owner_in(found: bytes) -> dict[str, Any]:
    """Who holds a lease; nobody, where it is empty or damaged: its owner notices at the next renewal, and stops."""
    try:
        owner = json.loads(found or b"{}")
    except ValueError:
        return {}
    needed = {"run_id", "command", "host", "machine", "pid", "process_started", "since", "renewed"}
    return owner if isinstance(owner, dict) and needed <= owner.keys() else {}


def _machine() -> str:
    """What process ids are unique in: a boot of a machine and a pid namespace; where there is no /proc, the host."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _lives(owner: dict[str, Any]) -> bool:
    """Whether an owner's process on this machine is the one that took the lease."""
    return _process_started(owner["pid"]) == owner["process_started"]


def _process_started(pid: int) -> str | None:
    """When a living process was started, in words that differ for another with its pid; None for a dead one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie writes no more
    except OSError:
        pass
    if not Path("/proc/self/stat").exists():
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, 0)
            return "unknown"
    return None
