"""A Ray cluster of two nodes on loopback, with a dashboard, apart from all others on this machine; ended by pids."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_START_S = 180


@contextmanager
def ray_cluster(environment: dict[str, str]) -> Iterator[tuple[str, str, Path]]:
    """Addresses of dashboard and GCS, and the folder with its logs. `environment` is that of both nodes."""
    folder = Path(tempfile.mkdtemp(prefix="tm-ray-", dir="/tmp"))  # short: sockets stand in it
    port, dashboard, client, *agents = free_ports(5)
    bin_folder = Path(sys.executable).parent
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", **environment}
    env["PATH"] = f"{bin_folder}{os.pathsep}{env['PATH']}"
    common = ["--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0"]
    head = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    nodes = [[*head, f"--temp-dir={folder}", "--include-dashboard=true"], [f"--address=127.0.0.1:{port}"]]
    try:
        with ExitStack() as stack:
            for number, options in enumerate(nodes):
                agent = f"--dashboard-agent-listen-port={agents[number]}"
                stack.enter_context(_node(folder, [str(bin_folder / "ray"), "start", *options, *common, agent], env))
                _await_port(port)
            _await_url(f"http://127.0.0.1:{dashboard}/api/version")
            yield f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _node(folder: Path, command: list[str], env: dict[str, str]) -> Iterator[None]:
    with (folder / "start.log").open("ab") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output, start_new_session=True)
    try:
        yield
    finally:
        children = descendants(process.pid)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        for pid in [process.pid, *children]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def descendants(pid: int) -> list[int]:
    """Processes that this one and its children have started."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found, new = [], [pid]
    while new := [child for child, parent in parents.items() if parent in new]:
        found += new
    return found


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _await_port(port: int) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "Ray did not start"
            time.sleep(0.2)


def _await_url(url: str) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the dashboard did not start"
            time.sleep(0.5)
