"""The fake program as a command, and processes looked at, for tests of servers."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

CAPTION = "a red circle above a blue square on a white ground"
FAKE = Path(__file__).with_name("fake_vllm.py")


def program(folder: Path) -> str:
    """An executable that behaves as `vllm`."""
    path = folder / "vllm"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
    path.chmod(0o755)
    return str(path)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def processes_with(word: str) -> list[int]:
    """Of whose command lines `word` is a part; this process aside."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.encode() in each for each in words) and int(path.parent.name) != os.getpid():
            found.append(int(path.parent.name))
    return found


def eventually(true: Callable[[], object], within_s: float = 20.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.05)
    return bool(true())
