"""Temporary files go with the process that made them, however it ends."""

import os
import signal
import subprocess
import sys
import tempfile

import pytest

from tokenmill.storage import scratch

HOLDS = """
import os, signal, sys, tempfile
from tokenmill.storage import scratch
path = scratch.claim("its")
scratch.use(os.path.join(path, "files"))
tempfile.NamedTemporaryFile(dir=scratch.folder(), delete=False)
print(path, flush=True)
{end}
"""


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(scratch, "_held", {})
    return tmp_path


def test_what_a_killed_process_left_goes_with_the_next(empty):
    code = HOLDS.format(end="os.kill(os.getpid(), signal.SIGKILL)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert [path for path in empty.rglob("tmp*") if path.is_file()]
    mine = scratch.claim("mine")
    assert [str(path) for path in empty.iterdir()] == [mine]
    scratch.let_go(mine)
    assert not list(empty.iterdir())


def test_what_a_living_process_holds_stays(empty):
    process = subprocess.Popen([sys.executable, "-c", HOLDS.format(end="input()")], stdin=-1, stdout=-1)
    held = process.stdout.readline().decode().strip()
    scratch.sweep()
    assert [str(path) for path in empty.iterdir()] == [held]
    shared = scratch.claim("its")
    process.communicate(b"\n", timeout=60)
    scratch.sweep()
    assert shared == held and [str(path) for path in empty.iterdir()] == [held]
    scratch.let_go(shared)
    assert not list(empty.iterdir())


def test_what_is_kept_for_who_takes_over_stays_for_its_time(empty):
    code = HOLDS.format(end="os.kill(os.getpid(), signal.SIGKILL)").replace('"its"', '"its", 60')
    subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    (left,) = empty.iterdir()
    scratch.sweep()
    assert left.exists()
    os.utime(left / "lock", (0, 0))
    scratch.sweep()
    assert not left.exists()
    subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    scratch.sweep("its")
    assert not left.exists()
    mine = scratch.claim("mine")
    os.utime(os.path.join(mine, "lock"), (0, 0))
    scratch.renew(mine)
    assert os.stat(os.path.join(mine, "lock")).st_mtime > 0
    scratch.let_go(mine)


def test_who_takes_over_clears_the_folder(empty, monkeypatch):
    monkeypatch.setattr(scratch, "_folder", None)
    for _ in range(2):
        scratch.use(str(empty / "worker"))
        with tempfile.NamedTemporaryFile(dir=scratch.folder(), delete=False):
            assert len(list((empty / "worker").iterdir())) == 1
