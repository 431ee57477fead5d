"""That there is nothing to do is taken from what was kept only where it is so."""

import json

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.plan import plan, settled
from tokenmill.pipeline.run.runner import run_phases

QUIET = Console(quiet=True)


def config_of(folder, **more):
    decide = {"image_rules": {"large": "width_px >= 24"}} | more.pop("decide", {})
    given = {"root": str(folder / "root"), "sources": [{"uri": str(folder / "corpus")}], "curate": {"decide": decide}}
    return RunConfig.model_validate(given | {"tokenize": {"frames": {"area_px": 256}}} | more)


def picture(folder, number):
    pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "corpus" / f"{number}.png")


@pytest.fixture
def folder(tmp_path):
    """With a settled root of three pictures."""
    (tmp_path / "corpus").mkdir()
    for number in range(3):
        picture(tmp_path, number)
    for _ in range(2):
        run(config_of(tmp_path))
    return tmp_path


@pytest.fixture
def planned(monkeypatch):
    """The phases that were planned from the tables."""
    found = []
    whole = plan.plan_phase
    monkeypatch.setattr(plan, "plan_phase", lambda phase, *rest: found.append(phase) or whole(phase, *rest))
    return found


def run(config, phases=settled.PHASES):
    made = run_phases(config, phases, "run", QUIET)
    return [(step.phase, step.why) for step in made.steps], [report.num_read for report in made.reports]


def test_an_unchanged_refresh_reads_no_table(folder, planned):
    told = run(config_of(folder))
    assert not planned and told[1] == [0, 0, 0]
    assert [phase for phase, _ in told[0]] == list(settled.PHASES) and told[0][0][1].startswith("nothing: 3 files")
    (folder / "root" / "settled.json").unlink()
    assert run(config_of(folder)) == told, "the same as a plan says"
    assert planned == list(settled.PHASES)
    planned.clear()
    assert run(config_of(folder), ("tokenize",))[1] == [0] and not planned


@pytest.mark.parametrize(
    "what", ["a file", "a file goes", "a rule", "a key", "votes", "a caption", "tables", "damage", "code"]
)
def test_what_changes_is_planned(folder, planned, what, monkeypatch):
    config = config_of(folder)
    votes = folder / "votes.jsonl"
    (media_id, *_) = Catalog(config.root).media.scan(["media_id"])["media_id"].to_pylist()
    if what == "votes":
        votes.write_text(json.dumps({"media_id": media_id, "vote": "keep"}))
        config = config_of(folder, decide={"votes": str(votes)})
        for _ in range(2):
            run(config)
        planned.clear()
        votes.write_text(json.dumps({"media_id": media_id, "vote": "reject"}))
    if what == "a file":
        picture(folder, 7)
    elif what == "a file goes":
        (folder / "corpus" / "1.png").unlink()
    elif what == "a caption":
        (folder / "corpus" / "1.txt").write_text("noise")
    elif what == "a rule":
        config = config_of(folder, decide={"image_rules": {"large": "width_px >= 40"}})
    elif what == "a key":
        config = config_of(folder, tokenize={"frames": {"area_px": 1024}})
    elif what == "tables":
        Catalog(config.root).tokens.edit(pc.field("media_id").is_valid(), None, {"run_id": "x"})
    elif what == "damage":
        kept = storage.read_json(f"{config.root}/settled.json")
        storage.write_json(f"{config.root}/settled.json", kept | {"told": {name: ["nothing"] for name in kept["told"]}})
    elif what == "code":
        monkeypatch.setattr("tokenmill.pipeline.refresh.fingerprints.metadata.version", lambda name: "other")
    before = {table.name: table.version for table in Catalog(config.root)}
    run(config)
    assert planned[: len(settled.PHASES)] == list(settled.PHASES)
    after = {table.name: table.version for table in Catalog(config.root)}
    assert (before == after) == (what in ("damage", "code"))
    planned.clear()
    run(config), planned.clear(), run(config)
    assert not planned, "settled again"
