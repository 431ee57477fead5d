"""Runs one program, and ends all that it started when the program ends, or when stdin closes.

    python keeper.py LOG PROGRAM ARGUMENT...

Whoever holds the other end of stdin lives as long as it is open; kill -9 closes it, too. Programs that serve models
start processes of their own, which outlive them where nobody looks: here they come to this process, and are killed.
Writes the program's process id to stdout. Runs alone: it imports nothing of ours.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

_GRACE_S = 10.0  # between asking the program to end and killing it
_DEATH_SIGNAL, _SUBREAPER = 1, 36  # of prctl
_KILLED_BY = 128


def main(log: str, command: list[str]) -> int:
    """The program's exit code, 128 and the signal where one ended it."""
    for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # stdin says when it is time; the program hears them
        signal.signal(which, lambda *_: None)
    _prctl(_SUBREAPER, 1)
    with open(log, "ab") as output:
        program = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: _prctl(_DEATH_SIGNAL, signal.SIGKILL),  # no thread runs yet
        )
    print(program.pid, flush=True)
    threading.Thread(target=_end_when_alone, args=(program,), daemon=True).start()
    code = program.wait()
    _kill_group(program.pid, signal.SIGKILL)
    while children := _children():
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)
    return code if code >= 0 else _KILLED_BY - code


def _end_when_alone(program: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1):  # a buffered reader would hold a lock at the interpreter's end
        pass
    _kill_group(program.pid, signal.SIGTERM)
    time.sleep(_GRACE_S)
    _kill_group(program.pid, signal.SIGKILL)


def _kill_group(group: int, which: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, which)


def _children() -> list[int]:
    """Living children; none are known where there is no /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            found += [int(path.parent.name)] if int(parent) == os.getpid() else []
    return found


def _prctl(what: int, value: int) -> None:
    with contextlib.suppress(AttributeError, OSError):  # on Linux alone
        ctypes.CDLL(None).prctl(what, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
