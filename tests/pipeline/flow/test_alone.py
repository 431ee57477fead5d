"""Lost rows in workers of their own: a row is to blame for workers that die over it, and for no machine's death."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray_cluster import ray_nodes

from tokenmill.pipeline.flow import alone
from tokenmill.pipeline.flow.alone import AloneWorkers
from tokenmill.pipeline.flow.flow import Group
from tokenmill.pipeline.phases import Pool

PROGRAM = Path(__file__).with_name("alone.py")
TABLE, NODE = pa.table({"uri": ["a"]}), "ab" * 28


class Worker:
    """In place of an actor: its calls do what the test says, one after the other."""

    started: list["Worker"]
    does: list[object]

    def __init__(self, notes: str):
        self.notes = notes
        self.whole, self.node = self._call(lambda: self.does.pop(0)), self._call(lambda: NODE)
        self.started.append(self)

    @classmethod
    def options(cls, **_):
        return SimpleNamespace(remote=lambda *_, notes: cls(notes))

    @staticmethod
    def _call(what):
        return SimpleNamespace(remote=lambda *_: what)


@pytest.fixture
def result(monkeypatch):
    """What comes of a table, where calls of workers do this, and their machine lives or not."""

    def made(is_alive: bool, *does: object):
        Worker.started, Worker.does = [], list(does)
        node = {"NodeID": NODE, "Alive": is_alive}
        ray = SimpleNamespace(remote=lambda it: it, get=get, nodes=lambda: [node], kill=lambda actor: None)
        monkeypatch.setattr(alone, "ray", ray)
        monkeypatch.setattr(alone.time, "sleep", lambda _: None)
        workers = AloneWorkers(SimpleNamespace(groups=[Group((), Pool(), 1)], limits=None), Worker)
        return workers(TABLE)

    def get(call):
        if isinstance(answer := call(), Exception):
            raise answer
        return answer

    return made


def test_the_second_worker_that_dies_over_rows_is_the_last(result):
    assert result(True, ActorDiedError(), ActorDiedError())[0] == "worker_died"
    first, second = Worker.started
    assert first.notes == second.notes, "it knows what the first had at hand"
    assert result(True, ActorDiedError(), TABLE) == TABLE


def test_a_machine_that_died_accuses_no_row(result):
    assert result(False, *[ActorDiedError() for _ in range(9)], TABLE) == TABLE
    assert len({worker.notes for worker in Worker.started}) == 10


def test_a_worker_that_does_not_answer_is_asked_again(result):
    assert result(True, *[ActorUnavailableError("?", None) for _ in range(9)], TABLE) == TABLE
    assert len(Worker.started) == 1


@pytest.mark.slow
@pytest.mark.cluster
def test_rows_outlive_more_machines_than_workers(tmp_path):
    log = tmp_path / "log"
    log.touch()
    with ray_nodes({}, "--num-cpus=0") as nodes:
        node = nodes.add(1)
        command = [sys.executable, str(PROGRAM), nodes.address, str(log)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            for num_begun in (1, 2, 3):
                deadline = time.monotonic() + 120
                while len(log.read_text().splitlines()) < num_begun:
                    assert process.poll() is None and time.monotonic() < deadline
                    time.sleep(0.2)
                if num_begun < 3:
                    nodes.kill(node)
                    node = nodes.add(1)
            said, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 0 and '[["a","b"]]' in said.replace("\n", "").replace(" ", ""), said[-3000:]
    assert len(set(log.read_text().splitlines())) == 3
