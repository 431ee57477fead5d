"""Damaged files of a root: whatever reads one works, or says in one line which file it is."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from test_damages import history
from world import PHASES, QUIET, World

from tests import fuzzing
from tokenmill.pipeline.catalog.export_registry import exports
from tokenmill.pipeline.catalog.forgotten import Forgotten
from tokenmill.pipeline.catalog.lease import at_work
from tokenmill.pipeline.catalog.records import newest_first, read_record
from tokenmill.pipeline.catalog.shard_files import SCHEMAS
from tokenmill.pipeline.catalog.tables import Catalog, Table
from tokenmill.pipeline.config import RunConfig, load
from tokenmill.pipeline.reports.status import document
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.pipeline.verify.verify import verify

pytestmark = pytest.mark.hostile


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> World:
    """A root with several versions, a checkpoint of a log, and every document that there is."""
    world = World(tmp_path_factory.mktemp("world"))
    history(world)
    root = world.folder / "root"
    captions = Catalog(str(root)).captions
    for _ in range(10):
        captions.edit(pc.field("caption").is_valid(), lambda rows: rows, {"what": "nothing"})
    Forgotten(str(root), {"0" * 32}, {"1" * 32}).save()
    (root / "exports.json").write_text(json.dumps([{"kind": "image", "uri": str(world.folder / "out")}]))
    (root / "runs" / "lease").write_text(json.dumps({"run_id": "x", "pid": 1, "renewed": 3, "host": "a"}))
    return world


@pytest.fixture
def root(ram_path, undisturbed) -> Path:
    return Path(shutil.copytree(undisturbed.folder / "root", ram_path / "root"))


def read_table(root: Path, name: str) -> None:
    """As commands read it: the log, all rows, what is said of each version."""
    table = Table(str(root), name)
    table.scan().to_pylist()
    table.count()
    table.history()


def read_records(root: Path) -> None:
    for record in newest_first(str(root)):
        read_record(str(root), record["run_id"])


def table_reader(name: str) -> Callable[[Path], None]:
    return lambda root: read_table(root, name)


# Kind of file: where it stands, what reads it, and how many inputs there are at most, by how long that takes.
READERS: dict[str, tuple[str, Callable[[Path], object], int]] = {
    **{f"{name}, data": (f"{name}/part-*.parquet", table_reader(name), 2_000) for name in SCHEMAS},
    **{f"{name}, log": (f"{name}/_delta_log/*.json", table_reader(name), 2_000) for name in ("media", "tokens")},
    "checkpoint": ("captions/_delta_log/*.checkpoint.parquet", table_reader("captions"), 2_000),
    "hint": ("captions/_delta_log/_last_checkpoint", table_reader("captions"), 500),
    "record": ("runs/2*.json", read_records, 2_000),
    "forgotten": ("forgotten.json", lambda root: Forgotten.load(str(root)), 20_000),
    "exports": ("exports.json", lambda root: [entry["uri"] for entry in exports(str(root))], 20_000),
    "lease": ("runs/lease", lambda root: at_work(str(root)), 20_000),
}
NEVER_SAID = ("lease", "hint")  # damaged, they are as if they were not there


@pytest.mark.parametrize(
    ("kind", "num_inputs"),
    [
        pytest.param(kind, *number.values, marks=number.marks, id=f"{kind}-{number.id}")
        for kind, (*_, many) in READERS.items()
        for number in fuzzing.count(many)
    ],
)
def test_a_damaged_file_is_said(root, kind, num_inputs):
    where, read, _ = READERS[kind]
    paths = sorted(root.glob(where))
    shares = [len(part) for part in np.array_split(np.arange(num_inputs), len(paths))]
    num_said = 0
    for number, (path, share) in enumerate(zip(paths, shares, strict=True)):
        num_said += fuzzing.check_reader(f"{kind}, file {number}", path, share, lambda: read(root))
    assert num_said or kind in NEVER_SAID or num_inputs < 10, "the damage tests nothing"


@pytest.mark.parametrize("num_inputs", fuzzing.count(many=150, few=20))
def test_commands_on_a_damaged_root(root, undisturbed, num_inputs):
    config = load(undisturbed.path, [*undisturbed.sets, f"root={root}"])
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    contents = {path: path.read_bytes() for path in paths}
    for number, (path, content) in enumerate(_some(contents, num_inputs)):
        name = str(path.relative_to(root))
        data = fuzzing.mutant(name, number, [content])
        path.write_bytes(data)
        try:
            for command in (document, verify, plan):
                fuzzing.said(lambda command=command: command(config))
        except BaseException as error:
            error.add_note(f"{name}, mutant {number}, {command.__name__}")
            raise
        path.write_bytes(content)


def _some(contents: dict[Path, bytes], num: int) -> Iterator[tuple[Path, bytes]]:
    pairs = list(contents.items())
    for number in range(num):
        yield pairs[number * 7919 % len(pairs)]


def plan(config: RunConfig) -> None:
    """`tokenmill run --plan`."""
    run_phases(config, PHASES, "run", QUIET, plan_only=True)


def test_the_root_is_whole(root, undisturbed):
    assert Catalog(str(root)).exists() and all(list(root.glob(where)) for where, *_ in READERS.values())
