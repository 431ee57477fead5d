"""Pools follow their cluster: nodes that come during a phase get rows, those that leave lose none, and a phase that
begins without any waits for the autoscaler's.
"""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from ray_cluster import RayNodes, ray_nodes

from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import Cluster
from tokenmill.pipeline.flow.flow import Group
from tokenmill.pipeline.flow.on_ray import _strategy
from tokenmill.pipeline.phases import Pool
from tokenmill.pipeline.run.pools import Machines, PhaseStages, PlanError, groups, lack
from tokenmill.pipeline.run.workers import Workers

PROGRAM = Path(__file__).with_name("comers.py")
LIMIT_S = 240


def started(root: Path, nodes: RayNodes, num_rows: int, max_nodes: int) -> subprocess.Popen:
    command = [sys.executable, PROGRAM, root, nodes.address, num_rows, max_nodes]
    return subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def begun(root: Path) -> list[tuple[str, float, str]]:
    """Each time that a row was begun: node, time, row."""
    log = Path(f"{root}.log")
    lines = log.read_text().splitlines() if log.exists() else []
    return [(node, float(at_s), uri) for node, at_s, uri in (line.split(" ", 2) for line in lines)]


def rows_of_nodes(root: Path) -> Counter[str]:
    return Counter(node for node, _, _ in begun(root))


def wait(process: subprocess.Popen, what, limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not what():
        assert process.poll() is None, process.stdout.read()[-3000:]
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.5)


def ended(process: subprocess.Popen, root: Path, num_rows: int) -> str:
    """What it said; its table has each row once."""
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, said[-3000:]
    table = Catalog(str(root)).media.scan(["uri", "reject_reason"])
    assert Counter(table["uri"].to_pylist()) == Counter(f"row {number}" for number in range(num_rows))
    assert table["reject_reason"].null_count == num_rows
    return said


@pytest.mark.slow
@pytest.mark.cluster
def test_a_node_that_comes_gets_rows_and_those_of_one_that_dies_are_soon_done_by_others(tmp_path):
    """Nobody takes the place of the one that dies. Ray needs about 15 s to notice."""
    root, num_rows, batch_rows = tmp_path / "root", 600, 4
    with ray_nodes({}, "--num-cpus=2") as nodes:
        process = started(root, nodes, num_rows, 0)
        try:
            wait(process, lambda: rows_of_nodes(root).total() > 0)
            (first,) = rows_of_nodes(root)
            late = nodes.add(2)
            wait(process, lambda: len(rows_of_nodes(root)) == 2 and min(rows_of_nodes(root).values()) >= 24)
            nodes.kill(late)
            num_before = len(begun(root))
            said = ended(process, root, num_rows)
        finally:
            process.kill()
    times = begun(root)
    assert rows_of_nodes(root)[first] < num_rows
    told = json.loads(said.splitlines()[-1])
    assert told["pools"][0]["workers"] > 2, "its workers are counted"
    assert told["is_in_order"] and "rows were lost" not in said
    again = [at for at, (_, _, uri) in enumerate(times) if uri in {other for _, _, other in times[:at]}]
    assert 0 < len(again) <= 2 * batch_rows, "the blocks at hand of two workers"
    assert times[again[-1]][1] - times[num_before][1] < 60
    assert again[-1] < len(times) - 50, "they do not wait for the last rows"


@pytest.mark.slow
@pytest.mark.cluster
def test_a_phase_that_begins_without_nodes_waits_for_those_of_the_autoscaler(tmp_path):
    """Ray's own autoscaler, which starts raylets here as it would machines."""
    root, num_rows, settings = tmp_path / "root", 320, tmp_path / "autoscaler.json"
    lists = ("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands")
    lists += ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")
    nothing = {**dict.fromkeys((*lists, "rsync_exclude", "rsync_filter"), []), "file_mounts": {}, "auth": {}}
    nothing |= {"docker": {}, "file_mounts_sync_continuously": False}
    head = "ray.head.default"  # as Ray's provider of raylets names it
    types = {head: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}}
    types["small"] = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2}

    def write(address: str) -> None:
        provider = {"type": "fake_multinode", "gcs_address": address, "disable_node_updaters": True}
        known = {"cluster_name": "fake", "max_workers": 2, "provider": provider, "available_node_types": types}
        known |= {"head_node_type": head, "upscaling_speed": 1.0, "idle_timeout_minutes": 5}
        settings.write_text(json.dumps(known | nothing))

    with ray_nodes(
        {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
        *("--num-cpus=0", f"--autoscaling-config={settings}"),
        before=write,
    ) as nodes:
        process = started(root, nodes, num_rows, 3)
        try:
            said = ended(process, root, num_rows)
        finally:
            process.kill()
    assert "slow: waits for machines: it begins with 0.95 CPUs, the cluster has 0\n" in said
    assert len(rows_of_nodes(root)) == 2, "the second one came because there was work for it"


def phase(*pools: Pool) -> PhaseStages:
    return PhaseStages("curate", None, tuple(((), pool) for pool in pools))


def test_pools_grow_on_a_cluster_and_nowhere_else():
    made = phase(Pool())
    (here,) = groups(made, Machines(2, 0))
    (there,) = groups(made, Machines(2, 0, is_cluster=True))
    (said,) = groups(phase(Pool(workers=2)), Machines(2, 0, is_cluster=True))
    assert (here.workers, there.workers, said.workers) == (2, 2, 2)
    assert (here.grows, there.grows, said.grows) == (False, True, False)
    assert (here.told, there.told) == ("2 x 0.75 CPU", "2+ x 0.75 CPU")
    strategies = [_strategy(group, 2, 50) for group in (here, there, said)]
    sizes = [(each.min_size, each.initial_size, each.max_size) for each in strategies]
    assert sizes == [(2, 2, 2), (1, 2, 50), (1, 2, 2)]
    few = _strategy(Group((), Pool(), 9, is_on_cluster=True), 3, 3)
    assert (few.initial_size, few.max_size) == (3, 3), "not more workers than blocks"


def test_what_no_node_has_is_awaited_only_of_an_autoscaler():
    decode, models = Pool(), Pool(num_gpus=1, workers=4)
    with pytest.raises(PlanError, match="need 4 GPUs, the cluster has 0"):
        groups(phase(decode, models), Machines(64, 0, is_cluster=True))
    made = groups(phase(decode, models), Machines(64, 0, is_cluster=True, are_awaited=True))
    assert [(each.workers, each.grows) for each in made] == [(42, True), (1, True)]
    assert lack(made, Machines(64, 0, True, True)) == (
        "waits for machines: it begins with 32.45 CPUs and 1 GPUs, the cluster has 64 and 0"
    )
    assert lack(made, Machines(64, 1, True, True)) is None
    assert [each.workers for each in groups(phase(decode, models), Machines(0, 0, True, True))] == [1, 1]


def test_a_cluster_is_full_when_it_has_as_many_nodes_as_may_come(local_ray):
    for max_nodes, is_awaited in ((None, False), (1, False), (2, True)):
        with Workers(Cluster(address="auto", nodes={"max_nodes": max_nodes})) as workers:
            assert workers.machines().are_awaited == is_awaited
    assert not Workers(Cluster(nodes={"max_nodes": 9})).machines().is_cluster
