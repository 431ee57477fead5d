"""Workers, machines and the driver die at random moments, and the tables are those of an undisturbed run.

Five deaths with one seed in the suite; `CHAOS_SEED=7 CHAOS_DEATHS=50 pytest tests/pipeline/test_chaos.py` for longer.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc
import pytest
from ray.cluster_utils import Cluster
from small_run import contents, end, start, write_config

from pipeline.catalog import Catalog

SEED, NUM_DEATHS = int(os.environ.get("CHAOS_SEED", "0")), int(os.environ.get("CHAOS_DEATHS", "5"))
KINDS = ("actor", "worker", "raylet", "driver")
PAUSE_S = (0.5, 4.0)  # between a death and the next
STORE_BYTES = 100 << 20


class Machines:
    """A cluster of a head and two more nodes, each with a CPU, as processes of this machine."""

    def __init__(self, chance: random.Random):
        self._chance = chance
        self.cluster = Cluster(initialize_head=True, head_node_args=self._node | {"include_dashboard": False})
        for _ in range(2):
            self.cluster.add_node(**self._node)

    _node = {"num_cpus": 1, "object_store_memory": STORE_BYTES}

    def kill_worker(self, title: str) -> bool:
        """Kill -9 a worker process whose title contains `title`; false when there is none."""
        nodes = self.cluster.list_all_nodes()
        raylets = {info.process.pid for node in nodes for info in node.all_processes.get("raylet", [])}
        listed = subprocess.run(["ps", "-axo", "pid=,ppid=,command="], capture_output=True, text=True).stdout
        lines = [line.split(None, 2) for line in listed.splitlines()]
        found = sorted(int(pid) for pid, parent, *command in lines if int(parent) in raylets and title in str(command))
        if found:
            os.kill(self._chance.choice(found), signal.SIGKILL)
        return bool(found)

    def replace_node(self) -> None:
        """A machine dies with its raylet and its workers; a new one comes."""
        node = self._chance.choice(sorted(self.cluster.worker_nodes, key=lambda node: node.unique_id))
        self.cluster.remove_node(node, allow_graceful=False)
        self.cluster.add_node(**self._node)


@pytest.fixture
def machines(monkeypatch) -> Iterator[Machines]:
    for name, value in {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}.items():
        monkeypatch.setenv(name, value)
    made = Machines(random.Random(SEED))
    yield made
    made.cluster.shutdown()


def deaths(chance: random.Random) -> list[str]:
    """Every kind once, in a random order, and then at random."""
    first = list(KINDS)
    chance.shuffle(first)
    return (first + [chance.choice(KINDS) for _ in range(NUM_DEATHS)])[:NUM_DEATHS]


def await_commits(driver: subprocess.Popen, root: str) -> None:
    """Wait until the first rows are in the catalog, or the run is over."""
    log = Path(root) / "media" / "_delta_log" / f"{1:020d}.json"
    while not log.exists() and driver.poll() is None:
        time.sleep(0.05)


@pytest.mark.slow
def test_whatever_dies_the_tables_are_those_of_an_undisturbed_run(machines, undisturbed_run, tmp_path):
    corpus, expected = undisturbed_run
    chance = random.Random(SEED)
    root = str(tmp_path / "root")
    config = write_config(tmp_path, str(corpus), root, address=machines.cluster.address, num_cpus=None)
    died = []
    driver = start(config)
    try:
        for kind in deaths(chance):
            await_commits(driver, root)
            time.sleep(chance.uniform(*PAUSE_S))
            if driver.poll() is not None:
                break
            if kind == "raylet":
                machines.replace_node()
            elif kind == "driver":
                end(driver)
                driver = start(config)
            elif not machines.kill_worker("MapBatches" if kind == "actor" else "ray::"):
                continue
            died.append(kind)
        output, _ = driver.communicate(timeout=600)
        assert driver.returncode == 0, output[-4000:]
    finally:
        end(driver)
    assert len(died) >= 2, f"the run was over after {died}"
    assert contents(root, str(corpus)) == expected
    for table in Catalog(root):
        ids = table.scan([table.schema.names[0]]).column(0)
        assert len(pc.unique(ids)) == len(ids), f"{table.name} holds a row twice"
