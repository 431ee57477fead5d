"""A server's life: slow starts, deaths, bad health, and the end of all that it started, whoever ends first."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from programs import eventually, lives, processes_with, program

from tokenmill.pipeline.serving.server import ModelServer, ServerError, ServerSpec

pytestmark = pytest.mark.service


def spec_of(folder: Path, *more: str, timeout_s: float = 20.0, restarts: int = 3) -> ServerSpec:
    command = (program(folder), "serve", f"{folder}/model", "--served-model-name", "m", "--dtype", "auto", *more)
    return ServerSpec("server 0 of mine", command, f"{folder}/logs/server.log", timeout_s, restarts)


def pids_of(folder: Path) -> tuple[int, int]:
    """Of the program, and of its keeper."""
    found = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes_with("--served-model-name")}
    ours = {pid: line for pid, line in found.items() if f"{folder}/model".encode() in line.split(b"\0")}
    (keeper,) = [pid for pid, line in ours.items() if b"keeper.py" in line]
    (program_pid,) = ours.keys() - {keeper}
    return program_pid, keeper


def is_well(url: str) -> bool:
    try:
        return urllib.request.urlopen(url.removesuffix("/v1") + "/health", timeout=2).status == 200
    except OSError:
        return False


def test_a_slow_start_is_waited_for_and_the_end_takes_all_along(tmp_path):
    began = time.monotonic()
    server = ModelServer(spec_of(tmp_path, "--fake-start-s", "1.5", "--fake-child", f"{tmp_path}/child"), "127.0.0.1")
    url = server.ready()
    assert time.monotonic() - began >= 1.5 and url.startswith("http://127.0.0.1:") and is_well(url)
    child = int((tmp_path / "child").read_text())  # in a session of its own
    assert lives(child) and "serving" in Path(server.log).read_text()
    server.end()
    assert not lives(child) and not processes_with(f"{tmp_path}/model") and not is_well(url)


def test_a_killed_server_comes_back_at_its_address_without_what_it_left(tmp_path):
    server = ModelServer(spec_of(tmp_path, "--fake-child", f"{tmp_path}/child"), "127.0.0.1")
    try:
        url = server.ready()
        first, _ = pids_of(tmp_path)
        os.kill(first, signal.SIGKILL)
        assert eventually(lambda: processes_with(f"{tmp_path}/model") and not lives(first))
        assert eventually(lambda: is_well(url)) and server.trouble() is None
        children = [int(line) for line in (tmp_path / "child").read_text().split()]
        assert [lives(child) for child in children] == [False, True]
    finally:
        server.end()


def test_one_that_dies_at_its_start_tells_the_end_of_its_log(tmp_path):
    server = ModelServer(spec_of(tmp_path, "--fake-dies", "0.2", "--fake-unwell"), "127.0.0.1")
    with pytest.raises(
        ServerError, match=r"server 0 of mine: it ended with code 3; its log, (\S+), ends with\n"
    ) as told:
        server.ready()
    assert "CUDA error: the fake GPU fell off" in str(told.value) and f"{tmp_path}/logs/server.log" in str(told.value)
    server.end()


def test_one_that_never_gets_well_is_ended(tmp_path):
    server = ModelServer(spec_of(tmp_path, "--fake-unwell", timeout_s=1.0), "127.0.0.1")
    with pytest.raises(ServerError, match=r"not healthy 1 s after its start \(start_timeout_s\)"):
        server.ready()
    assert eventually(lambda: not processes_with(f"{tmp_path}/model"))
    server.end()


def test_one_that_dies_again_and_again_stays_down(tmp_path):
    server = ModelServer(spec_of(tmp_path, "--fake-start-s", "0", "--fake-dies", "0.7", restarts=1), "127.0.0.1")
    server.ready()
    assert eventually(server.trouble)
    assert "it ended with code 3, after 1 restarts" in str(server.trouble())
    server.end()


def test_a_log_that_cannot_be_written_is_kept_elsewhere(tmp_path):
    spec = spec_of(tmp_path)._replace(log=f"/proc/none/{tmp_path.name}.log")
    server = ModelServer(spec, "127.0.0.1")
    server.ready()
    server.end()
    assert server.log.endswith(f"/tokenmill-logs/{tmp_path.name}.log") and Path(server.log).read_text()
    Path(server.log).unlink()


HOLDER = """
import sys, time
from tokenmill.pipeline.serving.server import ModelServer, ServerSpec
server = ModelServer(ServerSpec(*eval(sys.argv[1])), "127.0.0.1")
print(server.ready(), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("victim", ["holder", "keeper"])
def test_kill_9_of_who_keeps_it_ends_it(tmp_path, victim):
    spec = spec_of(tmp_path, "--fake-child", f"{tmp_path}/child", restarts=0)
    command = [sys.executable, "-c", HOLDER, repr(tuple(spec))]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        url = holder.stdout.readline().strip()
        pid, keeper = pids_of(tmp_path)
        child = int((tmp_path / "child").read_text())  # in a session of its own
        assert is_well(url) and lives(child)
        os.kill({"holder": holder.pid, "keeper": keeper}[victim], signal.SIGKILL)
        assert eventually(lambda: not lives(pid))
        if victim == "holder":  # of a killed keeper nobody is left who knows what the program started elsewhere
            assert eventually(lambda: not lives(child) and not lives(keeper))
    finally:
        holder.kill()
        holder.communicate()
        if lives(child):
            os.kill(child, signal.SIGKILL)
