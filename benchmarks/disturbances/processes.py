"""Processes by /proc: who descends from whom, what they hold, and which carry a mark in their environment."""

import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Held:
    """What processes hold together."""

    memory_mb: float  # resident, with what processes share counted in proportion
    descriptors: int
    threads: int


def running() -> dict[int, int]:
    """Parents by process id; zombies left out."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                found[int(path.name)] = int(parent)
    return found


def children(pid: int) -> list[int]:
    """Living children of a process."""
    return sorted(child for child, parent in running().items() if parent == pid)


def tree(pid: int) -> list[int]:
    """The process and all that descend from it."""
    below = defaultdict(list)
    for child, parent in running().items():
        below[parent].append(child)
    found = [pid]
    for each in found:
        found += below[each]
    return found


def marked(mark: str) -> list[int]:
    """Processes that were started with `mark`, a line NAME=VALUE, in their environment; this one left out."""
    found = []
    for pid in running():
        with suppress(OSError):
            if pid != os.getpid() and mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return sorted(found)


def command(pid: int) -> str:
    """The command line of a process; empty for one that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def held(pids: Iterable[int]) -> Held:
    """What these processes hold now; those that end meanwhile hold nothing."""
    kilobytes = descriptors = threads = 0
    for pid in pids:
        with suppress(OSError):
            folder = Path(f"/proc/{pid}")
            lines = (folder / "smaps_rollup").read_text().splitlines()
            kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            descriptors += len(os.listdir(folder / "fd"))
            threads += len(os.listdir(folder / "task"))
    return Held(kilobytes / 1024, descriptors, threads)
