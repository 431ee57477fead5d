"""Where this process keeps temporary files: one folder, which goes when it ends, also by kill -9.

A process that is killed removes nothing. So a command's files stand below one folder, held by a lock that ends with the
process; whoever makes the next one removes those that nobody holds. A worker has a folder in it, and whoever takes over
from a dead worker clears it.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

_PREFIX = "tokenmill-scratch-"
_LOCK = "lock"

_folder: str | None = None
_held: dict[str, int] = {}


def folder() -> str | None:
    """The `dir` of this process' temporary files, for tempfile; null: the system's."""
    return _folder


def claim(name: str, kept_s: int = 0) -> str:
    """The folder of this name on this machine, made and held until this process ends or lets go; shared with others
    that claim it. Held by nobody it stays for `kept_s` seconds, for who takes over. What dead processes left goes.
    """
    path = os.path.join(tempfile.gettempdir(), f"{_PREFIX}{name}")
    while path not in _held:
        os.makedirs(path, 0o700, exist_ok=True)
        lock = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_CREAT, 0o600)
        with contextlib.suppress(OSError):  # a file system without locks: nobody sweeps there
            fcntl.flock(lock, fcntl.LOCK_SH)
        if Path(path, _LOCK).exists():
            os.pwrite(lock, f"{kept_s:9d}".encode(), 0)
            _held[path] = lock
        else:
            os.close(lock)  # swept between the two
    sweep()
    return path


def renew(path: str) -> None:
    """Begin the time anew for which a folder held by nobody stays."""
    os.utime(_held[path])


def let_go(path: str) -> None:
    """Hold the folder no longer, and remove it when nobody else does."""
    os.close(_held.pop(path))
    sweep()


def use(path: str) -> None:
    """Keep temporary files in the folder `path` from now on; it is cleared before."""
    global _folder
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path, 0o700)
    _folder = path


def sweep(name: str | None = None) -> None:
    """Remove the folders that nobody holds and nobody will; the one of this name for sure."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if str(path) in _held:
            continue
        with contextlib.suppress(OSError):  # somebody else's, or swept by another process now
            lock = os.open(path / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                kept_s = int(os.pread(lock, 9, 0) or 0)
                if path.name == f"{_PREFIX}{name}" or time.time() - os.fstat(lock).st_mtime >= kept_s:
                    (path / _LOCK).unlink()
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
