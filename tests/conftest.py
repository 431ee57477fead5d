"""Fixtures that several test folders use."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError
from small_run import contents, make_corpus, run, write_config

from tokenmill.pipeline.config import Cluster
from tokenmill.pipeline.flow import local
from tokenmill.pipeline.flow.local import local_workers
from tokenmill.pipeline.flow.on_ray import cluster

PROJECT = Path(__file__).resolve().parent.parent
SERVICES = {"local_ray", "s3", "ceph_s3", "ceph_endpoint"}


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as `service` what asks for Ray or an object store; that begins first, for it takes longest."""
    for item in items:
        if SERVICES & set(getattr(item, "fixturenames", ())):
            item.add_marker("service")
    items.sort(key=lambda item: item.get_closest_marker("service") is None)


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells hand it to what they start behind them
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos, videos and bad files, beside the checkout; not part of the repository."""
    folder = PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real media not present: {folder}")
    return folder


@pytest.fixture
def ram_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one, for tests that write thousands of files."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray on two CPUs for all tests that run phases in this process: starting it takes ten seconds."""
    with cluster(Cluster(num_cpus=2)):
        yield


@pytest.fixture(scope="session", autouse=True)
def worker_processes() -> Iterator[None]:
    """The processes of runs in this process stay from test to test: their imports take seconds."""
    with local_workers():
        yield


@pytest.fixture(scope="session")
def undisturbed_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict]]]:
    """A corpus, and the rows that a run on the local disk makes of it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    corpus, root = make_corpus(folder / "corpus"), str(folder / "root")
    run(write_config(folder, str(corpus), root))
    return corpus, contents(root, str(corpus))


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a fresh moto server on loopback, as an s3:// URI; the AWS variables point to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    if local._open is not None:
        local._open.end()  # its processes have the variables of before
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=dict(os.environ),
    )
    try:
        client = boto3.client("s3")
        for _ in range(120):
            try:
                client.create_bucket(Bucket="bucket")
                break
            except EndpointConnectionError:
                time.sleep(0.25)
        yield "s3://bucket"
    finally:
        server.kill()
        server.wait()
