"""One server of a model: started on a free port, watched by its /health, restarted when it dies, ended with its keeper.

A thread watches. What never became healthy is not started again: its command or its model is wrong.
"""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tokenmill.pipeline.serving import keeper
from tokenmill.storage.errors import UserError

_LOOK_S, _FIRST_LOOK_S = 2.0, 0.2
_ANSWER_S = 10.0
_UNWELL_S = 60.0  # without good health; a server that loads many pictures answers late
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_SHOWN_LINES, _SHOWN_CHARS = 5, 300
_LOG_TAIL_BYTES = 1 << 16
_ERROR = re.compile(r"\b[A-Z]\w*(Error|Exception): .+")
_DEFAULTS = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60"}  # seconds; after 5, busy, it closes connections just as one is used
_CONTROL = re.compile(r"\x1b\[[0-9;]*m|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class ServerError(UserError):
    """A server does not come up, or no more; the message says why, and holds the end of its log."""


class ServerSpec(NamedTuple):
    """What is started: `command` without host and port; `log` is where its output goes, where that can be written;
    `environment` goes over that of the holder, null takes a variable away.
    """

    name: str
    command: tuple[str, ...]
    log: str
    start_timeout_s: float
    restarts: int
    environment: Mapping[str, str | None] = {}


class ModelServer:
    """A server of this machine at `host`. Begins at once; `ready` waits for it."""

    def __init__(self, spec: ServerSpec, host: str):
        self._spec, self._host, self._port = spec, host, _free_port(host)
        self.log = _log_file(spec.log)
        self._ending, self._is_settled = threading.Event(), threading.Event()
        self._failed: str | None = None
        self._keeper: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._watch = threading.Thread(target=self._keep, name=f"server {spec.name}", daemon=True)
        self._watch.start()

    def ready(self) -> str:
        """Its address, once it is well. Raises ServerError."""
        self._is_settled.wait()
        if self._failed is not None:
            raise ServerError(self._failed)
        return f"http://{self._host}:{self._port}/v1"

    def trouble(self) -> str | None:
        """Why it is down for good; null: it is not."""
        return self._failed

    def stop(self) -> None:
        """Let it begin to end."""
        self._ending.set()
        with self._lock:
            if self._keeper is not None and self._keeper.stdin is not None:
                self._keeper.stdin.close()

    def end(self) -> None:
        """End it, with all that it started."""
        self.stop()
        self._watch.join()

    def _keep(self) -> None:
        num_restarts = 0
        try:
            while True:
                why = self._one_life()
                if self._ending.is_set():
                    return
                if not self._is_settled.is_set():
                    self._failed = self._told(why)
                    return
                if num_restarts >= self._spec.restarts:
                    self._failed = self._told(f"{why}, after {num_restarts} restarts")
                    return
                self._ending.wait(min(_FIRST_PAUSE_S * 2**num_restarts, _LONGEST_PAUSE_S))
                num_restarts += 1
        except OSError as error:
            self._failed = f"{self._spec.name}: cannot be started: {error}"
        finally:
            self._is_settled.set()

    def _one_life(self) -> str:
        """From its start to its end, and why it ended."""
        with self._lock:
            if self._ending.is_set():
                return "ended"
            begun = self._keeper = self._begun()
        assert begun.stdin is not None and begun.stdout is not None
        group = int(begun.stdout.readline() or 0)
        why = self._attended(begun)
        begun.stdin.close()
        if begun.wait() < 0 and group:  # the keeper was killed: nobody else knows the group
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        begun.stdout.close()
        return why

    def _begun(self) -> "subprocess.Popen[bytes]":
        command = [*self._spec.command, "--host", self._host, "--port", str(self._port)]
        given = {name: value for name, value in self._spec.environment.items() if value is not None}
        environment = _DEFAULTS | os.environ | given
        taken_away = {name for name, value in self._spec.environment.items() if value is None}
        for name in list(environment):  # of this environment, or of Ray's worker: not the server's
            if name in taken_away | {"PYTHONPATH", "PYTHONHOME"} or name.startswith("RAY_"):
                del environment[name]
        return subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, self.log, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )

    def _attended(self, begun: "subprocess.Popen[bytes]") -> str:
        started, well_at = time.monotonic(), 0.0
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return f"it ended with code {begun.wait(_LOOK_S if well_at else _FIRST_LOOK_S)}"
            now = time.monotonic()
            if self._is_well():
                well_at = now
                self._is_settled.set()
            elif not well_at and now - started > self._spec.start_timeout_s:
                return f"not healthy {self._spec.start_timeout_s:g} s after its start (start_timeout_s)"
            elif well_at and now - well_at > _UNWELL_S:
                return f"no good health for {_UNWELL_S:g} s"

    def _is_well(self) -> bool:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_ANSWER_S)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _told(self, why: str) -> str:
        return "\n    ".join([f"{self._spec.name}: {why}; its log, {self.log}, ends with", *self._last_lines()])

    def _last_lines(self) -> list[str]:
        """Of the log, after the first error in it: traces of what followed from that may fill the last lines."""
        with contextlib.suppress(OSError), open(self.log, "rb") as file:
            file.seek(max(0, os.path.getsize(self.log) - _LOG_TAIL_BYTES))
            text = _CONTROL.sub("", file.read().decode(errors="replace"))
            lines = [line.strip()[:_SHOWN_CHARS] for line in text.splitlines() if line.strip()]
            first = next((found[0] for line in text.splitlines() if (found := _ERROR.search(line))), "")
            last = lines[-_SHOWN_LINES:]
            return [first[:_SHOWN_CHARS], *last] if first and not any(first[:80] in line for line in last) else last
        return []


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def _log_file(wanted: str) -> str:
    """The path, or one of the same name in the temporary folder where this machine cannot write there."""
    for path in (Path(wanted), Path(tempfile.gettempdir(), "tokenmill-logs", Path(wanted).name)):
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
            return str(path)
    return os.devnull
