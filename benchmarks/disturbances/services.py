"""What stands beside the disturbed commands: a store, a Ray cluster, and a process that runs config after config."""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.exceptions import EndpointConnectionError

if TYPE_CHECKING:
    from disturbances.machines import Machines

COMMAND = Path(__file__).parent / "command.py"


@contextmanager
def store(temporary: Path, bucket: str) -> Iterator[str]:
    """The address of a moto server with an empty bucket, as a process of its own."""
    temporary.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    try:
        address = f"http://127.0.0.1:{port}"
        while True:
            try:
                boto3.client("s3", endpoint_url=address).create_bucket(Bucket=bucket)
                break
            except EndpointConnectionError:
                time.sleep(0.25)
        yield address
    finally:
        server.kill()
        server.wait()


@contextmanager
def machines(chance: random.Random, environment: dict[str, str]) -> Iterator["Machines"]:
    """A Ray cluster whose processes have these variables; this one has them meanwhile."""
    from disturbances.machines import VARIABLES, Machines

    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ |= environment | VARIABLES | {"RAY_TMPDIR": folder}
        try:
            made = Machines(chance)
            try:
                yield made
            finally:
                made.cluster.shutdown()
        finally:
            os.environ.clear()
            os.environ |= before


class Steady:
    """A process that runs config after config, undisturbed, and lives on."""

    def __init__(self, environment: dict[str, str], errors: Path):
        self._errors = errors
        with errors.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, str(COMMAND), "--serve"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                text=True,
            )
        self.pid = self._process.pid

    def run(self, config: Path, temporary: Path) -> str | None:
        """Run the config with temporary files in that folder; the traceback of what ended it, or null."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{config}\t{temporary}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            return f"the process ended with code {self._process.wait()}: {self._errors.read_text()[-2000:]}"
        return json.loads(answer).get("error")

    def end(self) -> None:
        """Also while it runs."""
        self._process.kill()
        self._process.wait()
