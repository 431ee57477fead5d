"""Nodes with other code or without a secret stop a run before its work, and the message says what they have."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tokenmill.pipeline.config import Cluster, Nodes
from tokenmill.pipeline.flow import nodes
from tokenmill.storage.version import code_version

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture
def unasked(local_ray, monkeypatch) -> None:
    monkeypatch.setattr(nodes, "_asked", set())


def test_a_node_is_asked_once(unasked, monkeypatch):
    nodes.check_nodes(["PATH"])
    monkeypatch.setattr(nodes, "_about", lambda *_: pytest.fail("asked again"))
    nodes.check_nodes(["PATH"])


def test_both_versions_are_said(unasked, monkeypatch):
    there = code_version()
    monkeypatch.setattr(nodes, "code_version", lambda: "9.9.9 (code 00000000)")
    with pytest.raises(nodes.NodeError) as caught:
        nodes.check_nodes([])
    assert f"has tokenmill {there}, this process 9.9.9 (code 00000000)" in str(caught.value)


def test_a_secret_that_a_node_lacks_is_named(unasked):
    with pytest.raises(
        nodes.NodeError, match="lacks NOT_SET_ANYWHERE of cluster.nodes.secrets: set it in the environment"
    ):
        nodes.check_nodes(["PATH", "NOT_SET_ANYWHERE"])


def test_nodes_are_awaited_for_so_long(unasked):
    start = time.monotonic()
    nodes.await_nodes(Cluster(nodes=Nodes(min_nodes=1, wait_s=60.0)))
    assert time.monotonic() - start < 30
    start = time.monotonic()
    nodes.await_nodes(Cluster(nodes=Nodes(min_nodes=99, wait_s=1.0)))
    assert 1 <= time.monotonic() - start < 30


def test_the_version_is_that_of_the_code(tmp_path):
    code = "from tokenmill.storage.version import code_version; print(code_version())"
    ignored = shutil.ignore_patterns(".*", "runs", "build", "tests", "benchmarks", "docs", "*.safetensors")
    copy = shutil.copytree(PROJECT, tmp_path / "tokenmill", ignore=ignored)

    def said() -> str:
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout.strip()

    assert said() == code_version()
    (copy / "pipeline" / "phases.py").write_text("# other\n")
    assert said() != code_version()
    assert said().split()[0] == code_version().split()[0]
