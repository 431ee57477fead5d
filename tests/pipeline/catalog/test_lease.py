"""Of two runs on a root one is refused, with the other's name; a dead run blocks no one for long."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog import lease
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.reports.status import print_status
from tokenmill.pipeline.run.runner import run_phases

HOLD = """
import sys, time
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.catalog.lease import held
with held(Catalog(sys.argv[1]), "first", "run"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.service)])
def root(request, tmp_path) -> str:
    return str(tmp_path / "root") if request.param == "local" else f"{request.getfixturevalue('s3')}/root"


@pytest.fixture
def first(root):
    """A process that holds the root's lease."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, root], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def document(root: str) -> dict:
    return json.loads(storage.read_bytes(f"{root}/runs/lease"))


def pretend(root: str, **changes) -> None:
    """Let the lease say something else, as if its owner were another."""
    old = storage.read_bytes(f"{root}/runs/lease")
    assert storage.swap_bytes(f"{root}/runs/lease", json.dumps(json.loads(old) | changes).encode(), old)


def test_the_second_is_refused_by_name_and_kill_9_frees_the_root_at_once(root, first):
    config = RunConfig(root=root, sources=[{"uri": os.getcwd()}])
    with pytest.raises(CatalogError, match=rf"run first .*host .*pid {first.pid}, since 20.*wait for it or end it"):
        run_phases(config, ("caption",), "caption", Console(quiet=True))
    first.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie, as with a parent that does not care
    started = time.monotonic()
    with lease.held(Catalog(root), "second", "run"):
        assert document(root)["run_id"] == "second"
    assert time.monotonic() - started < 5
    with lease.held(Catalog(root), "third", "run"):
        assert document(root)["run_id"] == "third"


def test_the_second_waits_by_choice(root, first, monkeypatch):
    monkeypatch.setattr(lease, "_LOOK_S", 0.1)
    told: list[str] = []

    def on_wait(who: str) -> None:
        told.append(who)
        first.kill()

    refused = pytest.raises(CatalogError, match="run first .*cluster.root_wait_s")
    with refused, lease.held(Catalog(root), "second", "run", wait_s=0.3):
        pass
    with lease.held(Catalog(root), "third", "run", wait_s=60, on_wait=on_wait):
        assert document(root)["run_id"] == "third"
    assert len(told) == 1 and f"pid {first.pid}" in told[0]


def test_who_is_at_work_is_seen_from_elsewhere(root, first):
    seen = lease.at_work(root)
    assert seen is not None and (seen["run_id"], seen["command"], seen["pid"]) == ("first", "run", first.pid)
    assert 0 <= seen["silent_s"] < 60
    Catalog(root).create()
    terminal = Console(record=True, width=200, file=io.StringIO())
    print_status(RunConfig(root=root, sources=[{"uri": os.getcwd()}]), terminal, as_json=False)
    who = f"run first (`tokenmill run`, host {socket.gethostname()}, pid {first.pid}, since 20"
    assert f"At work: {who}" in terminal.export_text()
    pretend(root, machine="elsewhere", renewed=time.time_ns() - 90 * 10**9)
    seen = lease.at_work(root)
    assert seen is not None and 90 <= seen["silent_s"] < 150, "a run that is silent there may be dead"
    pretend(root, process_started="long ago")
    assert lease.at_work(root) is not None, "only its own machine knows whether a process lives"


def test_nobody_is_at_work_once_a_run_was_killed_or_has_ended(root, first):
    first.kill()
    first.wait()
    assert lease.at_work(root) is None
    with lease.held(Catalog(root), "second", "run"):
        seen = lease.at_work(root)
        assert seen is not None and seen["run_id"] == "second"
    assert lease.at_work(root) is None
    assert lease.at_work(f"{root}/nowhere") is None


def test_a_process_with_the_dead_one_s_pid_does_not_hold_its_lease(root, first):
    pretend(root, process_started="long ago")
    with lease.held(Catalog(root), "second", "run"):
        assert document(root)["run_id"] == "second"


def test_another_machine_s_lease_is_watched(root, first, monkeypatch):
    monkeypatch.setattr(lease, "STALE_S", 8.0)  # long beside what a busy machine takes for a request
    monkeypatch.setattr(lease, "_LOOK_S", 0.1)
    first.kill()
    first.wait()
    pretend(root, machine="elsewhere")
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(lease.held(Catalog(root), "second", "run").__enter__)
        time.sleep(1.0)
        pretend(root, renewed=1)
        with pytest.raises(CatalogError, match="run first"):
            refused.result()
    monkeypatch.setattr(lease, "STALE_S", 2.0)
    started = time.monotonic()
    with lease.held(Catalog(root), "second", "run"):
        assert 2.0 < time.monotonic() - started < 8.0


def test_who_lost_the_lease_commits_nothing(root, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_S", 0.1)
    catalog = Catalog(root)
    with lease.held(catalog, "first", "run"):
        catalog.create()
        old = document(root)["renewed"]
        time.sleep(1.0)
        assert document(root)["renewed"] != old
        for _ in range(50):  # it is renewed meanwhile
            try:
                pretend(root, run_id="second")
                break
            except AssertionError:
                continue
        time.sleep(1.0)
        version = catalog.sources.version
        row = dict.fromkeys(("uri", "etag", "status", "fingerprint", "last_seen_run"), "x") | {"size_bytes": 1}
        rows = catalog.sources.schema.empty_table().from_pylist([row], schema=catalog.sources.schema)
        with pytest.raises(CatalogError, match="another run took over"):
            catalog.sources.append(rows, {})
        assert catalog.sources.version == version
    assert document(root)["run_id"] == "second", "it is not given back by who lost it"


def test_of_many_at_once_one_wins(root):
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: storage.swap_bytes(f"{root}/runs/lease", b"%d" % i, None), range(8)))
    assert sum(won) == 1
    assert storage.read_bytes(f"{root}/runs/lease") == b"%d" % won.index(True)


def test_a_root_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CatalogError, match=r"root: .*file/root: cannot be written.*check the path"):
        lease.held(Catalog(str(tmp_path / "file" / "root")), "first", "run").__enter__()
