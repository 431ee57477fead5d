"""Workers, machines and the driver die at random moments, and the tables are those of an undisturbed run.

Five deaths with one seed in the suite; `CHAOS_SEED=7,8 CHAOS_DEATHS=50 pytest -m slow tests/pipeline/run/test_chaos.py`
for longer.
"""

import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc
import pytest
from disturbances.machines import VARIABLES, Machines
from rich.console import Console
from small_run import contents, end, num_commits, start, write_config

from tokenmill.pipeline.catalog.shard_files import SCHEMAS, write_shard
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.commands.vacuum import vacuum
from tokenmill.pipeline.config import load

SEEDS = [int(seed) for seed in os.environ.get("CHAOS_SEED", "0").split(",")]
NUM_DEATHS = int(os.environ.get("CHAOS_DEATHS", "5"))
KINDS = ("actor", "worker", "raylet", "driver")
COMMITS, PAUSE_S = 12, (0.5, 8.0)  # between a death and the next


@pytest.fixture
def machines(seed, monkeypatch) -> Iterator[Machines]:
    # A folder of its own, so that nothing else on this machine joins the cluster; short, because sockets stand in it.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        for name, value in (VARIABLES | {"RAY_TMPDIR": folder}).items():
            monkeypatch.setenv(name, value)
        made = Machines(random.Random(seed))
        yield made
        made.cluster.shutdown()


def deaths(chance: random.Random) -> list[str]:
    """Every kind once, in a random order, and then at random."""
    first = list(KINDS)
    chance.shuffle(first)
    return (first + [chance.choice(KINDS) for _ in range(NUM_DEATHS)])[:NUM_DEATHS]


def await_moment(chance: random.Random, driver: subprocess.Popen, root: str) -> None:
    """Wait for a random time, which mostly ends while something starts, or for a random number of further commits."""
    if chance.random() < 0.5:
        time.sleep(chance.uniform(*PAUSE_S))
        return
    wanted = num_commits(root, *SCHEMAS) + chance.randint(1, COMMITS)
    while driver.poll() is None and num_commits(root, *SCHEMAS) < wanted:
        time.sleep(0.02)
    time.sleep(chance.uniform(0.0, 0.2))


def kill(kind: str, machines: Machines, driver: subprocess.Popen, config: Path) -> subprocess.Popen:
    """Let one of `kind` die, as soon as there is one; returns the driver, which is a new one where the old one died."""
    if kind == "raylet":
        machines.replace_node()
    elif kind == "driver":
        end(driver)
        return start(config)
    else:
        while not machines.kill_worker("MapBatches" if kind == "actor" else "ray::") and driver.poll() is None:
            time.sleep(0.02)
    return driver


def orphans(root: str) -> set[str]:
    """Files in the folders of the tables that no version names, or that were being written when their writer died."""
    found = set()
    for table in Catalog(root):
        logs = sorted((Path(root) / table.name / "_delta_log").glob("*.json"))
        actions = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
        named = {action["add"]["path"] for action in actions if "add" in action}
        files = {path for path in (Path(root) / table.name).iterdir() if path.is_file()}
        found |= {f"{table.name}/{path.name}" for path in files if path.name not in named}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_dies_the_tables_are_those_of_an_undisturbed_run(seed, machines, undisturbed_run, tmp_path):
    corpus, expected = undisturbed_run
    chance = random.Random(seed)
    root = str(tmp_path / "root")
    config = write_config(tmp_path, str(corpus), root, address=machines.cluster.address, num_cpus=None)
    died: list[tuple[str, int]] = []
    driver = start(config)
    try:
        for kind in deaths(chance):
            await_moment(chance, driver, root)
            if driver.poll() is not None:
                break
            died.append((kind, num_commits(root, *SCHEMAS)))
            driver = kill(kind, machines, driver, config)
        output, _ = driver.communicate(timeout=900)
        assert driver.returncode == 0, f"after {died}: {output[-4000:]}"
    finally:
        end(driver)
    print(f"seed {seed}: died, after commits: {died}; orphans: {len(orphans(root))}")
    assert {kind for kind, _ in died} == set(KINDS), f"the run was over after {died}"
    assert contents(root, str(corpus)) == expected
    for table in Catalog(root):
        ids = table.scan([table.schema.names[0]]).column(0)
        assert len(pc.unique(ids)) == len(ids), f"{table.name} holds a row twice"

    write_shard(root, "captions", Catalog(root).captions.scan())  # also where chance left no orphan
    assert orphans(root)
    vacuum(load(config), 0, False, Console(quiet=True))
    assert not orphans(root)
    for table in Catalog(root):
        left = {str(path) for path in (Path(root) / table.name).iterdir() if path.is_file()}
        assert left == set(table.files()), f"{table.name} holds files that its newest version does not need"
    assert contents(root, str(corpus)) == expected
