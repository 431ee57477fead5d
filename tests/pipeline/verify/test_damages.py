"""200 random deletions, cuts and bit flips of the files of a root: after `verify --repair` and a run its tables are the
undisturbed ones, and that run did again what was broken, and nothing else.

What hangs on a file is worked out here from the undisturbed root, by the rows that the file held. On a commit nothing
hangs, as long as its copy is whole: no commit is damaged together with its copy here (see test_verify.py for that).
"""

import json
import random
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from world import PHASES, QUIET, World

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig, load
from tokenmill.pipeline.run.run import Run
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.pipeline.verify.verify import verify

PER_RUN = ("run_id", "last_seen_run")
NUM_ROUNDS, PER_ROUND = 40, 5
KEYS = {"sources": ("curate", "uri"), "media": ("curate", "uri"), "captions": ("caption", "media_id")}
KEYS |= {"tokens": ("tokenize", "media_id")}


def contents(root: str) -> dict[str, list[str]]:
    """Rows of all tables, without what differs from run to run, and without files that are gone: that they were there
    once nobody can find out again.
    """
    return {
        table.name: sorted(
            json.dumps({name: value for name, value in row.items() if name not in PER_RUN}, sort_keys=True)
            for row in table.scan().to_pylist()
            if row.get("status") != "gone"
        )
        for table in Catalog(root)
    }


def history(world: World) -> None:
    """A few runs, so that there are several files, commits that take files away, and a near duplicate."""
    world.run("cluster.shard_rows=2", "curate.duplicates.near_radius=2")
    for name, seed in (("f", 77), ("g", 78)):
        world.draw(name, 64, seed)
        (world.photos / f"{name}.txt").write_text(f"words of {name}")
    world.draw("near", 80, 77)
    world.run()
    (world.photos / "a.txt").write_text("other words")
    (world.photos / "b.png").unlink()
    world.run()
    world.run('curate.decide.image_rules.large="width_px >= 20"')


class Held:
    """What hung on each file of an undisturbed root: by phase, what it makes again."""

    def __init__(self, root: Path):
        self.must: dict[str, dict[str, set[str]]] = {}  # of data files of the newest versions
        self.may: dict[str, dict[str, set[str]]] = {}  # of commits without a copy: the files that came and went
        for name, (phase, key) in KEYS.items():
            folder = root / name
            tables = {path.name: pq.read_table(path).to_pylist() for path in folder.glob("*.parquet")}
            rows = {file: {row[key] for row in table if row.get("status") != "gone"} for file, table in tables.items()}
            for uri in DeltaTable(str(folder)).file_uris():
                file = uri.rsplit("/", 1)[1]
                self.must[f"{name}/{file}"] = {phase: rows[file]}
            for log in folder.glob("_delta_log/*.json"):
                actions = [json.loads(line) for line in log.read_text().splitlines()]
                files = [action[kind]["path"] for action in actions for kind in ("add", "remove") if kind in action]
                may = {phase: {key for file in files for key in rows[file]}}
                if phase == "curate":  # where an older row is back, what was made of it is made again, too
                    ids = {row["file_id"] for file in files for row in tables[file]}
                    may |= {"caption": ids, "tokenize": ids}
                self.may[f"{name}/_delta_log/{log.name}"] = may


def choose(names: list[str], dice: random.Random) -> list[str]:
    """Files to damage, no commit together with its copy."""
    while True:
        chosen = dice.sample(names, PER_ROUND)
        if len({name.replace("_log_copies", "_delta_log") for name in chosen}) == PER_ROUND:
            return chosen


def damage(path: Path, dice: random.Random) -> str:
    data = path.read_bytes()
    how = dice.choice(["delete", "cut", "flip"]) if data else "delete"
    if how == "delete":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: dice.randrange(len(data))])
    else:
        at, bit = dice.randrange(len(data)), dice.randrange(8)
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
    return how


def read(run: Run) -> dict[str, set[str]]:
    return {phase: set(run.plans[phase].todo[World.KEYS[phase]].to_pylist()) for phase in PHASES}


def union(parts: list[dict[str, set[str]]]) -> dict[str, set[str]]:
    found = defaultdict(set)
    for part in parts:
        for phase, keys in part.items():
            found[phase] |= keys
    return found


def check_mended(config: RunConfig, held: Held, names: list[str], expected: dict[str, Any], what: Any) -> None:
    """After repair and run: the tables, what was done again, and nothing is wrong any more."""
    found = verify(config, repair=True)
    assert not found.open, (what, found.open)
    assert not verify(config).open, what
    run = run_phases(config, PHASES, "run", QUIET)
    got = contents(config.root)
    differs = {name: set(got[name]) ^ set(expected[name]) for name in got if got[name] != expected[name]}
    assert not differs, (what, differs)
    uncopied = {name for name in names if name.replace("_delta_log", "_log_copies") in names} & held.may.keys()
    must = union([held.must[name] for name in names if name in held.must])
    may = union([held.may[name] for name in uncopied])
    for phase, keys in read(run).items():
        if not uncopied:
            assert keys == must[phase], (what, phase, keys ^ must[phase])
        assert keys <= must[phase] | may[phase], (what, phase, keys - must[phase] - may[phase])
    assert not verify(config, deep=True).problems, what
    again = run_phases(config, PHASES, "run", QUIET)
    assert [report.num_read for report in again.reports] == [0, 0, 0], what


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_random_damages_are_mended_by_what_hung_on_them(tmp_path, seed):
    world, dice = World(tmp_path), random.Random(seed)
    history(world)
    held, expected = Held(tmp_path / "root"), contents(str(tmp_path / "root"))
    assert all(expected.values()), "every table has rows"
    for number in range(NUM_ROUNDS):
        root = tmp_path / "copy"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(tmp_path / "root", root)
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
        chosen = choose(names, dice)
        what = [number, *((name, damage(root / name, dice)) for name in chosen)]
        check_mended(load(world.path, [*world.sets, f"root={root}"]), held, chosen, expected, what)


def in_a_store(folder: Path, store: str, seed: int, num_rounds: int) -> None:
    """The same, of roots that were copied to a store with their damages."""
    world, dice, root = World(folder), random.Random(seed), f"{store}/root"
    history(world)
    held, expected = Held(folder / "root"), contents(str(folder / "root"))
    for number in range(num_rounds):
        if storage.exists(root):
            storage.delete_folder(root)
        local = folder / "local"
        shutil.rmtree(local, ignore_errors=True)
        shutil.copytree(folder / "root", local)
        names = sorted(str(path.relative_to(local)) for path in local.rglob("*") if path.is_file())
        chosen = choose(names, dice)
        what = [number, *((name, damage(local / name, dice)) for name in chosen)]
        storage.upload_folder(local, root)
        check_mended(load(world.path, [*world.sets, f"root={root}"]), held, chosen, expected, what)


def test_damages_in_a_store_are_mended(tmp_path, s3):
    in_a_store(tmp_path, s3, seed=1, num_rounds=1)
