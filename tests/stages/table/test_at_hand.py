"""Who takes over from a worker that died knows what it had at hand, and refuses the guilty medium alone."""

import os
import signal
import subprocess
import sys

import pyarrow as pa
import pytest

from tokenmill.stages.table import at_hand
from tokenmill.stages.table.at_hand import BlockRefusedError, Notes, is_held

TABLE = pa.table({"uri": ["a", "b"], "member": [None, "x"]})
DIES = """
import ctypes, os, sys
import pyarrow as pa
from tokenmill.stages.table import limits
from tokenmill.stages.table.at_hand import Notes
limits.set_limits(limits.Limits(0.5), Notes(sys.argv[1]))
limits.at_work(3, pa.table({"uri": ["a", "b"], "member": [None, "x"]}))
with limits.medium(0):
    pass
with limits.medium(1):
    {body}
"""


def dies(path, body: str) -> int:
    return subprocess.run([sys.executable, "-c", DIES.replace("{body}", body), path], timeout=60).returncode


def refusals(path) -> list[str | None]:
    notes = Notes(path)
    notes.at_work(3, TABLE)
    return [notes.take(0, 0), notes.take(1, 0), notes.take(1, 1), notes.release()]


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path)


@pytest.fixture
def path(folder):
    return os.path.join(folder, "at_hand")


def test_a_medium_that_hung_is_refused_at_once(path, folder):
    assert dies(path, "ctypes.PyDLL(None).sleep(30)") == 1 and is_held(folder)
    assert refusals(path) == [None, "timed_out", None, None] and not is_held(folder)
    assert refusals(path)[1] == "timed_out", "also by those who come later"


def test_a_medium_that_killed_has_a_second_life(path):
    assert dies(path, "os.kill(os.getpid(), 9)") == -signal.SIGKILL
    assert refusals(path) == [None] * 4
    assert dies(path, "os.kill(os.getpid(), 9)") == -signal.SIGKILL
    assert refusals(path) == [None, "worker_died", None, None]


def test_a_death_with_nothing_at_hand_accuses_nobody(path, folder):
    for _ in range(2):
        assert dies(path, "pass\nos.kill(os.getpid(), 9)") == -signal.SIGKILL
        assert not is_held(folder)
    assert refusals(path) == [None] * 4


def test_a_block_is_refused_where_two_died_over_it_with_nothing_at_hand(path):
    body = "pass\nnotes = limits._notes\nwith notes.block(pa.table({'uri': ['a', 'b']})):\n    os.kill(os.getpid(), 9)"
    for _ in range(2):
        with Notes(path).block(TABLE.select(["uri"])):
            pass
        assert dies(path, body) == -signal.SIGKILL
    notes = Notes(path)
    with pytest.raises(BlockRefusedError, match="2 workers died over these 2 rows"), notes.block(TABLE.select(["uri"])):
        raise AssertionError
    with notes.block(TABLE.select(["uri"]).slice(1)):
        pass


def test_a_death_over_a_medium_is_not_the_blocks(path):
    body = "with limits._notes.block(pa.table({'uri': ['a', 'b']})):\n        os.kill(os.getpid(), 9)"
    for _ in range(2):
        assert dies(path, body) == -signal.SIGKILL
    with Notes(path).block(TABLE.select(["uri"])):
        pass


def test_it_says_where_the_machine_killed_for_memory(path, monkeypatch):
    for number in range(2):
        monkeypatch.setattr(at_hand, "_num_killed", lambda number=number: number)
        notes = Notes(path)
        notes.at_work(3, TABLE)
        notes.take(1, 0)
    monkeypatch.setattr(at_hand, "_num_killed", lambda: 2)
    assert refusals(path)[1] == "out_of_memory"


def test_another_stage_is_another_matter(path):
    dies(path, "ctypes.PyDLL(None).sleep(30)")
    notes = Notes(path)
    notes.at_work(2, TABLE)
    assert notes.take(1, 0) is None


HANGS = """
import sys
import tokenmill.storage as storage
from tokenmill.stages.read import read
from tokenmill.stages.table.at_hand import Notes
from tokenmill.stages.table.chain import Chain
from tokenmill.stages.table.columns import LISTED
from tokenmill.stages.table.limits import Limits
import pyarrow as pa, time

def chunks(uri, *span):
    if uri.endswith("hang"):
        time.sleep(30)
    yield b"BM" + uri.encode()

storage.read_chunks = chunks
uris = ["s3://x/1", "s3://x/hang", "s3://x/2"]
table = pa.Table.from_pylist([{"uri": uri, "size_bytes": 0} for uri in uris], schema=LISTED)
chain = Chain([(read.Read, (read.ReadConfig(),))], Limits(1.0), Notes(sys.argv[1]))
print(*(row["reject_reason"] for row in chain(table).to_pylist()), flush=True)
"""


def test_of_files_that_are_read_side_by_side_the_one_that_hangs_is_found(path):
    said = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", HANGS, path], capture_output=True, text=True, timeout=60)
        said.append((done.returncode, done.stdout.split()))
    assert said == [(1, []), (1, []), (0, ["unknown_format", "timed_out", "unknown_format"])], done.stderr
