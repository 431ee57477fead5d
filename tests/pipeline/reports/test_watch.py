"""A run at work is followed from another process by what its lease says, until it ends."""

import io
import threading
import time

from rich.console import Console

from tokenmill.pipeline.catalog import lease
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.reports import watch as watching
from tokenmill.pipeline.reports.progress import Progress
from tokenmill.pipeline.reports.watch import state, watch


def test_what_a_run_tells_is_seen_until_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_S", 0.1)
    monkeypatch.setattr(watching, "RENEW_S", 0.1)
    monkeypatch.setattr(watching, "_PLAIN_EVERY_S", 0.3)
    root, now = str(tmp_path / "root"), [Progress("curate", "files", 1, 9, line="1/9 files  [b]")]
    console = Console(file=io.StringIO(), width=200)
    watch(root, console)
    assert "no run is at work" in console.file.getvalue()
    with lease.held(Catalog(root), "r1", "run", lambda: now[0].as_dict()):
        follower = threading.Thread(target=watch, args=(root, console))
        follower.start()
        time.sleep(0.5)
        now[0] = Progress("tokenize", "media", 5, 8, line="5/8 media")
        time.sleep(1.0)
    follower.join(20)
    said = console.file.getvalue()
    assert not follower.is_alive() and "Run r1: `tokenmill run`" in said
    assert "curate: 1/9 files  [b]" in said and "tokenize: 5/8 media" in said and "Run r1 has ended" in said


def test_silence_is_said():
    told = {"progress": Progress("curate", "files", silent_s=400, line="3/9 files").as_dict(), "silent_s": 2.0}
    assert state(told) == "curate: 3/9 files  no result for 402 s"
    assert "may be dead" in state(told | {"silent_s": 90.0})
    assert state({"progress": None, "silent_s": 1.0}) == "plans"
