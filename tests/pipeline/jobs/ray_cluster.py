"""A Ray cluster on loopback, with a dashboard, apart from all others on this machine; its nodes come and go as a test
wants, and are ended by their pids.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_START_S = 180


class RayNodes:
    """A head, and what is added to it."""

    def __init__(
        self,
        folder: Path,
        environment: dict[str, str],
        *of_head: str,
        before: Callable[[str], None] = lambda _: None,
    ):
        self.folder, bin_folder = folder, Path(sys.executable).parent
        port, self._dashboard, client = free_ports(3)
        self.dashboard, self.address = f"http://127.0.0.1:{self._dashboard}", f"127.0.0.1:{port}"
        self._ray, self.processes = str(bin_folder / "ray"), list[subprocess.Popen]()
        self._env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", **environment}
        self._env["PATH"] = f"{bin_folder}{os.pathsep}{self._env['PATH']}"
        head = ["--head", f"--port={port}", f"--dashboard-port={self._dashboard}", f"--ray-client-server-port={client}"]
        before(self.address)
        self._start(*head, f"--temp-dir={folder}", "--include-dashboard=true", *of_head)
        _await_port(port)

    def add(self, num_cpus: float = 2) -> subprocess.Popen:
        """Another node; its process, for `kill`."""
        return self._start(f"--address={self.address}", f"--num-cpus={num_cpus}")

    def await_dashboard(self) -> None:
        _await_url(f"{self.dashboard}/api/version")

    def kill(self, node: subprocess.Popen) -> None:
        """It dies with all that runs on it."""
        for pid in [node.pid, *descendants(node.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait()

    def end(self) -> None:
        for node in reversed(self.processes):
            children = descendants(node.pid)
            node.terminate()
            with suppress(subprocess.TimeoutExpired):
                node.wait(30)
            for pid in [node.pid, *children]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            node.wait()

    def _start(self, *options: str) -> subprocess.Popen:
        common = ["--block", "--node-ip-address=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0"]
        agent = f"--dashboard-agent-listen-port={free_ports(1)[0]}"
        command = [self._ray, "start", *options, *common, agent]
        with (self.folder / "start.log").open("ab") as output:
            node = subprocess.Popen(command, env=self._env, stdout=output, stderr=output, start_new_session=True)
        self.processes.append(node)
        return node


@contextmanager
def ray_nodes(
    environment: dict[str, str], *of_head: str, before: Callable[[str], None] = lambda _: None
) -> Iterator[RayNodes]:
    """A head, started with these options more; `before` is told its address."""
    folder = Path(tempfile.mkdtemp(prefix="tm-ray-", dir="/tmp"))  # short: sockets stand in it
    nodes = None
    try:
        nodes = RayNodes(folder, environment, *of_head, before=before)
        yield nodes
    finally:
        if nodes is not None:
            nodes.end()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ray_cluster(environment: dict[str, str]) -> Iterator[tuple[str, str, Path]]:
    """Two nodes: addresses of dashboard and GCS, and the folder with the logs. `environment` is that of both."""
    with ray_nodes(environment, "--num-cpus=2") as nodes:
        nodes.add()
        nodes.await_dashboard()
        yield nodes.dashboard, nodes.address, nodes.folder


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
