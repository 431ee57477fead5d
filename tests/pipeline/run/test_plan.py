"""Changing one thing redoes only what follows from it, the plan says so before, and what is not named is not opened."""

import json
import os
from typing import Any

import pytest
from rich.console import Console
from world import PHASES, QUIET, SIDES_PX, World

from tokenmill.pipeline.catalog.tables import CatalogError
from tokenmill.pipeline.catalog.versions import runs
from tokenmill.pipeline.commands.forget import forget
from tokenmill.pipeline.config import load
from tokenmill.pipeline.refresh.changed_keys import changed_keys
from tokenmill.pipeline.run.redecide import redecide
from tokenmill.pipeline.run.run import Run
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.pipeline.run.workers import Workers


def told(run: Run) -> list[tuple[str, str, int | None]]:
    return [(step.phase, step.why, step.num_read) for step in run.steps if not step.why.startswith("nothing")]


def num_read(run: Run) -> list[int]:
    return [report.num_read for report in run.reports]


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


def test_captions_thresholds_tokenizer(world, monkeypatch):
    first = world.run()
    assert told(first) == [
        ("curate", "new", 5),
        ("caption", "what curate keeps of 5 files", None),
        ("tokenize", "what curate keeps of 5 files", None),
    ]
    with monkeypatch.context() as without:
        without.setattr(Workers, "run", None)  # a run that opens nothing starts no workers
        again = world.run()
    assert told(again) == [] and len(again.steps) == 3
    before = world.tokens()
    assert before.keys() == {"a", "b", "c", "d"}

    # Another captioner: no pixel is read, the rows of tokens get its captions.
    world.corrupt(*SIDES_PX)
    captioned = world.run("caption.use=[]")
    assert told(captioned) == [("tokenize", "captions changed; codes stay", 0)]
    assert num_read(captioned) == [0, 0, 0]
    after = world.tokens()
    assert [row["caption"] for row in after.values()] == [None] * 4
    assert {name: row["codes"] for name, row in after.items()} == {name: row["codes"] for name, row in before.items()}
    assert captioned.catalog.captions.count() == 4
    # A threshold: stored scores are judged anew, and no file is opened.
    with monkeypatch.context() as without:
        without.setattr(Workers, "run", None)
        stricter = world.run('curate.decide.image_rules.large="width_px >= 50"')
    assert told(stricter) == [("curate", "curate.decide.image_rules.large width_px >= 32 -> width_px >= 50", 0)]
    assert stricter.steps[0].writes == "verdicts of 2 media, -1 captions, -1 tokens"  # e keeps its verdict, reworded
    assert num_read(stricter) == [0, 0, 0] and world.tokens().keys() == {"a", "b", "c"}

    # Another tokenizer: exactly the kept media are encoded anew; d and e, which are rejected, stay corrupt.
    for seed, name in enumerate("abc"):
        state = (world.photos / f"{name}.png").stat()
        world.draw(name, SIDES_PX[name], seed)
        os.utime(world.photos / f"{name}.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    encoded = world.run("tokenize.frames.area_px=1024")
    assert told(encoded) == [("tokenize", "tokenize.frames.area_px 4096 -> 1024", 3)]
    assert num_read(encoded) == [0, 0, 3]
    rows = world.tokens()
    assert {row["grid_h"] for row in rows.values()} == {4} and {row["fingerprint"] for row in rows.values()}.isdisjoint(
        row["fingerprint"] for row in before.values()
    )
    assert {row["caption"] for row in rows.values()} == {None}


def test_files_measurements_takedowns(world):
    world.run()
    world.draw("new", 64, seed=9)
    world.draw("b", 64, seed=8)
    for path in world.photos.glob("a.*"):
        path.unlink()
    (world.photos / "c.txt").write_text("other words")
    mixed = world.run()
    assert told(mixed) == [
        ("curate", "new", 1),
        ("curate", "changed", 1),
        ("curate", "source captions changed", 0),
        ("curate", "1 file gone", 0),
        ("caption", "source captions changed", 1),
        ("caption", "what curate keeps of 2 files", None),
        ("tokenize", "what curate keeps of 2 files", None),
        ("tokenize", "captions changed; codes stay", 0),
    ]
    assert mixed.steps[3].writes == "-1 media, -1 captions, -1 tokens, unless a file to read holds the same"
    assert num_read(mixed) == [2, 3, 2]
    assert world.tokens()["c"]["caption"] == "other words"

    measured = world.run("curate.score.max_pixels=5000")
    assert told(measured)[0] == ("curate", "curate.score.max_pixels 100000000 -> 5000", 5)
    assert num_read(measured) == [5, 0, 0] and world.tokens().keys() == {"b", "d", "new"}, "c has 6400 pixels"

    # What redecide and forget did stands in the log, and the next plan counts from there.
    config = load(world.path, [*world.sets, 'curate.decide.image_rules.large="width_px >= 60"'])
    redecide(config, QUIET)
    world.sets.append('curate.decide.image_rules.large="width_px >= 70"')
    planned = run_phases(load(world.path, world.sets), ("curate",), "curate", QUIET, plan_only=True)
    assert told(planned) == [("curate", "curate.decide.image_rules.large width_px >= 60 -> width_px >= 70", 0)]
    version = planned.catalog.tokens.version
    forget(config, [str(world.photos / "b.png")], QUIET)
    assert [run["command"] for run in runs(planned.catalog)] == ["run", "run", "run", "redecide", "forget"]
    with pytest.raises(CatalogError, match=rf"tokens: version {version} cannot be read .*forgotten.* newest version"):
        run_phases(load(world.path, [f"version={version}"]), ("train",), "train", QUIET, plan_only=True)
    assert not (world.folder / "root" / "training").exists()


def test_a_plan_for_a_new_root_makes_nothing(tmp_path, capfd):
    world = World(tmp_path)
    console = Console(width=120)
    run_phases(load(world.path), (*PHASES, "train"), "run", console, plan_only=True)
    lines = capfd.readouterr().out.splitlines()
    assert any("new" in line and "5 files" in line for line in lines)
    assert any("the tokens change" in line for line in lines)
    assert not (tmp_path / "root").exists()


def test_keys_that_changed_are_named():
    before = {"curate": {"split": {"a": 1, "b": [1]}, "read": {}}, "train": {"x": 1}}
    after = {"curate": {"split": {"a": 2.5, "b": [1], "c": None}, "read": {}}, "train": {"x": 2}}
    assert changed_keys(before, after, ("curate.split", "curate.read")) == [
        "curate.split.a 1 -> 2.5",
        "curate.split.c (unset) -> null",
    ]
    assert changed_keys(before, after, ("curate.spl",)) == []


def malformed(run: Run) -> dict[str, str]:
    rows = run.catalog.media.scan(["uri", "member", "reject_reason", "reject_detail"]).to_pylist()
    found = {row["member"]: row for row in rows if row["member"] is not None}
    assert {row["reject_reason"] for row in found.values()} <= {"malformed_line"}
    sources = run.catalog.sources.scan(["uri", "member", "status", "file_id"]).to_pylist()
    there = {row["member"] for row in sources if row["file_id"] and row["member"] and row["status"] == "present"}
    assert there == found.keys(), "in `sources` and in `media`"
    return {member: row["reject_detail"].split(":")[0] for member, row in found.items()}


def test_malformed_lines_of_captions_are_rows(world):
    path, fine = world.photos / "captions.jsonl", '{"file": "e.png", "caption": "words"}'
    world.run()
    path.write_text(f"{fine}\nnot json\n\n[1]\n")
    first = world.run()
    assert told(first) == [
        ("curate", "new", 1),
        ("caption", "what curate keeps of 1 file", None),
        ("tokenize", "what curate keeps of 1 file", None),
    ]
    assert malformed(first) == {"line 2": "not JSON", "line 4": "not a JSON object but a list"}
    assert first.reports[0].notes == [f"2 malformed lines were passed over: {path}, line 2, {path}, line 4"]
    again = world.run()
    assert told(again) == [] and num_read(again) == [0, 0, 0]
    assert again.reports[0].notes[1:] == first.reports[0].notes, "said as long as it is so"
    path.write_text(f"{fine}\nnot json\n\n[1]\n{fine}\n")
    assert told(world.run()) == [], "no other line is malformed"

    path.write_text(f"{fine}\nnot json\n\n3\n")  # in another way
    changed = world.run()
    assert num_read(changed) == [1, 0, 0] and malformed(changed)["line 4"] == "not a JSON object but a number"
    path.write_text(f"{fine}\nnot json\n")
    assert malformed(world.run()) == {"line 2": "not JSON"}
    path.write_text(f"{fine}\n")
    mended = world.run()
    assert told(mended)[:1] == [("curate", "1 file gone", 0)] and malformed(mended) == {}
    assert mended.reports[0].numbers["num_malformed_lines"] == 0

    path.write_text("x\n" * 100_000)
    many = malformed(world.run())
    assert len(many) == 1001 and many["line 1001 and after"] == "99000 more malformed lines"
    path.unlink()
    assert malformed(world.run()) == {}


def test_malformed_lines_of_tables_are_counted_and_named(world):
    texts = world.folder / "texts"
    texts.mkdir()
    (texts / "x.jsonl").write_text('{"text": "a document"}\nno document\n')
    (texts / "y.csv").write_text("text,n\na document,1\n" + "cut, at, commas\n" * 6)
    sources = [{"uri": str(world.photos)}, {"uri": str(texts), "kind": "text"}]
    run = world.run(f"sources={json.dumps(sources)}")
    assert run.reports[0].numbers["num_malformed_lines"] == 7 and run.reports[0].rejected["malformed_line"] == 7
    (note,) = run.reports[0].notes
    assert note.startswith(f"7 malformed lines were passed over: {texts}/x.jsonl, row 1, {texts}/y.csv, row 1, ")
    assert note.endswith(f"{texts}/y.csv, row 4, ...")


def test_a_medium_that_is_overwritten_before_it_is_encoded_is_encoded_where_it_stands_later(world, monkeypatch):
    begin, path = Run.phase, world.photos / "a.png"
    content = path.read_bytes()

    def overwritten(self: Run, name: str, *rest: Any) -> Any:
        if name == "tokenize":
            world.draw("a", 64, seed=99)
            (world.photos / "moved.png").write_bytes(content)
        return begin(self, name, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "phase", overwritten)
        run_phases(load(world.path), PHASES, "run", QUIET)
    assert world.tokens()["a"]["reject_reason"] == "changed"
    world.run()
    assert {name: row["reject_reason"] for name, row in world.tokens().items()} == dict.fromkeys(
        ["a", "b", "c", "d", "moved"]
    )
    assert num_read(world.run()) == [0, 0, 0]


@pytest.mark.parametrize("phase", ["curate", "tokenize"])
def test_a_file_that_is_away_while_a_phase_reads_is_read_when_it_is_back_as_it_was(world, tmp_path, monkeypatch, phase):
    begin, path, elsewhere = Run.phase, world.photos / "a.png", tmp_path / "a.png"

    def without_it(self: Run, name: str, *rest: Any) -> Any:
        if name == phase:
            path.rename(elsewhere)
        return begin(self, name, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "phase", without_it)
        run_phases(load(world.path), PHASES, "run", QUIET)
    elsewhere.rename(path)  # its time and size are those of before
    assert num_read(world.run()) == ([1, 1, 1] if phase == "curate" else [0, 0, 1])
    assert world.tokens()["a"]["reject_reason"] is None
    assert num_read(world.run()) == [0, 0, 0]


def test_a_verdict_on_names_follows_them(world):
    """One fitting name is enough; when it goes, the plan foresees the verdict and no file is read."""
    honest = 'curate.decide.image_rules.honest="extension_fits"'
    (world.photos / "a.jpg").write_bytes((world.photos / "a.png").read_bytes())
    first = world.run(honest)
    assert verdicts(first) == dict.fromkeys(["a.jpg", "b.png", "c.png", "d.png"]) | {"e.png": "large"}
    (world.photos / "a.png").unlink()
    again = world.run()
    assert told(again) == [("curate", "names of files changed", 0), ("curate", "1 file gone", 0)]
    assert again.steps[0].writes == "whether extensions fit, verdicts of 1 media, -1 captions, -1 tokens"
    assert world.tokens().keys() == {"b", "c", "d"}

    for before, after in (("a.jpg", "f.png"), ("a.txt", "f.txt"), ("b.png", "g.jpg"), ("b.txt", "g.txt")):
        (world.photos / before).rename(world.photos / after)
    renamed = world.run()
    assert num_read(renamed) == [2, 1, 1] and world.tokens().keys() == {"c", "d", "f"}
    assert verdicts(renamed)["g.jpg"] == "honest"
    assert told(world.run()) == []


def verdicts(run: Run) -> dict[str, str | None]:
    rows = run.catalog.media.scan(["uri", "reject_reason"]).to_pylist()
    return {os.path.basename(row["uri"]): row["reject_reason"] for row in rows}
