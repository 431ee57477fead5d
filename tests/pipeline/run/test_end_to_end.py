"""The whole line as a person runs it: one corpus, commands, kill -9, refresh, S3; tables are compared row by row."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import yaml
from PIL import Image
from rich.console import Console

from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import load
from tokenmill.pipeline.demo.scenes import write_corpus
from tokenmill.pipeline.demo.show import CONFIG
from tokenmill.pipeline.plan.training import train_jobs
from tokenmill.pipeline.run.given import give
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.training.data.spoken import media_key
from tokenmill.training.run.prepare import load_prepared, prepare

pytestmark = pytest.mark.service
NUM_IMAGES = 48
TINY_TRAINING = {
    "model": {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "intermediate_size": 64},
    "optimizer": {"steps": 3},
}
QUIET = Console(quiet=True)
KEPT_IMAGE = pc.field("reject_reason").is_null() & (pc.field("kind") == "image")
PER_RUN = {"run_id", "last_seen_run"}


def write_config(folder: Path, corpus: str, root: str, **cluster) -> Path:
    """The demo's config with a training of three steps."""
    document = yaml.safe_load(CONFIG.read_text())
    document |= {"root": root, "sources": [{"uri": corpus}]}
    document["train"] |= TINY_TRAINING
    document["train"]["resources"] = {"threads": 1}
    document["cluster"] = {"num_cpus": 2, "commit_every_s": 0.2, "local_rows": 0, **cluster}
    for phase in ("curate", "caption", "tokenize"):
        document[phase] = document.get(phase, {}) | {"resources": {"batch_rows": 4}}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def tokenmill(*arguments: object, check: bool = True, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tokenmill", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, **options)
    if check:
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result


def state(config: Path) -> dict:
    return json.loads(tokenmill("status", config, "--json").stdout)


def num_read(config: Path) -> dict[str, int]:
    return {phase["phase"]: phase["num_read"] for phase in state(config)["last_run"]["phases"]}


def contents(root: Path | str) -> dict[str, list[dict]]:
    """All rows of all tables, without what differs from run to run, in a fixed order."""
    found = {}
    for table in Catalog(str(root)):
        rows = table.scan().drop(list(PER_RUN & set(table.schema.names)))
        found[table.name] = sorted(rows.to_pylist(), key=lambda row: json.dumps(row, sort_keys=True))
    return found


def assert_accounts_hold(config: Path) -> None:
    """seen = kept + rejected, every file has a row in `sources`, every content one in `media`, every id once."""
    document = state(config)
    for row in document["accounts"]:
        assert row["seen"] == row["kept"] + row["rejected"] == row["kept"] + sum(row["reasons"].values())
    catalog = Catalog(document["root"])
    media = catalog.media.scan(["media_id", "file_id", "reject_reason"])
    assert len(pc.unique(media["media_id"])) == media.num_rows
    sources = catalog.sources.scan(["file_id"], pc.field("status") == "present")
    assert set(sources["file_id"].to_pylist()) == set(media["file_id"].to_pylist())
    kept = set(media.filter(pc.is_null(media["reject_reason"]))["media_id"].to_pylist())
    for table in (catalog.captions, catalog.tokens):
        ids = table.scan(["media_id"])["media_id"].to_pylist()
        assert sorted(ids) == sorted(kept), table.name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, Path, Path]:
    """(corpus, root, config) after one whole run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    corpus, root = folder / "corpus", folder / "root"
    write_corpus(corpus, num_images=NUM_IMAGES, num_videos=4)
    config = write_config(folder, str(corpus), str(root))
    tokenmill("run", config)
    return corpus, root, config


def test_every_file_is_accounted_for(undisturbed):
    corpus, root, config = undisturbed
    assert_accounts_hold(config)
    media = Catalog(str(root)).media.scan(["uri", "reject_reason"])
    broken = {uri: reason for uri, reason in zip(*media.to_pydict().values(), strict=True) if "/bad/" in uri}
    kept = [uri for uri, reason in broken.items() if reason is None and "duplicate" not in uri]
    assert not kept, f"broken on purpose, and kept: {kept}"
    clean = [reason for uri, reason in zip(*media.to_pydict().values(), strict=True) if "/images/" in uri]
    assert clean.count(None) >= 0.95 * NUM_IMAGES


def test_a_model_card_shows_code_that_draws(undisturbed, tmp_path):
    """Nothing of ours is needed for it."""
    _, _, config = undisturbed
    out = tmp_path / "my-emu3"
    said = tokenmill("export", "model", config, "--out", out, "--license", "apache-2.0").stdout
    assert said.startswith(str(out)) and "README.md, the model card" in said
    card = (out / "README.md").read_text()
    assert "license: apache-2.0" in card and "large_enough: min(width_px, height_px) >= 48" in card
    assert "3 steps" in card and str(tmp_path) not in card
    (tmp_path / "draw.py").write_text(card.split("```python")[1].split("```")[0])
    script = [sys.executable, "-I", "draw.py"]
    subprocess.run(script, check=True, capture_output=True, timeout=300, cwd=tmp_path)
    assert Image.open(tmp_path / "picture.png").size == (64, 64)


def test_a_second_run_reads_nothing_and_makes_no_version(undisturbed):
    _, _, config = undisturbed
    before = {table["table"]: table["version"] for table in state(config)["tables"]}
    output = tokenmill("run", config).stdout
    assert "none was read" in output
    assert num_read(config) == {"curate": 0, "caption": 0, "tokenize": 0, "train": 0}
    assert {table["table"]: table["version"] for table in state(config)["tables"]} == before


def test_show_and_sample(undisturbed, tmp_path):
    _, root, config = undisturbed
    first = Catalog(str(root)).tokens.scan(["media_id"])["media_id"][0].as_py()
    output = tokenmill("show", config, first[:12]).stdout
    assert first in output
    assert "num_codes" in output
    out = tmp_path / "drawn.png"
    tokenmill(
        "sample",
        config,
        "--prompt",
        "a red circle",
        "--prompt",
        "a blue square",
        "--seed",
        1,
        "--seed",
        2,
        "--out",
        out,
    )
    width, height = Image.open(out).size
    assert min(width, height) >= 128


def test_held_out_media_are_of_no_family_and_like_none_that_are_trained_on(undisturbed, tmp_path):
    _, root, path = undisturbed
    config, catalog = load(path, ["train.data.held_out=0.3"]), Catalog(str(root))
    [job] = train_jobs(config, catalog)
    job = replace(job, run_uri=str(tmp_path / "run"))
    give(catalog, job)
    summary, ready = prepare(job), load_prepared(job)
    media = catalog.media.scan(["media_id", "file_id", "phash"], pc.field("reject_reason").is_null()).to_pylist()
    by_key = {media_key(row["media_id"]): row for row in media}
    trained, held_out = ([by_key[key] for key in index.media.tolist()] for index in (ready.index, ready.held_out[0]))
    assert sum(summary["held_out"].values()) == len(held_out) > 0
    assert len(trained) + len(held_out) + sum(summary["excluded"].values()) == len(media)
    assert not {row["file_id"] for row in trained} & {row["file_id"] for row in held_out}
    hashes = np.array([[int(row["phash"], 16) for row in trained]], np.uint64)
    mine = np.array([[int(row["phash"], 16)] for row in held_out], np.uint64)
    assert np.bitwise_count(hashes ^ mine).min() > 6


def test_tuning(undisturbed, tmp_path):
    """The model of another config, rules over stored scores, dialogues by file names and ids; once."""
    corpus, root, config = undisturbed
    media = Catalog(str(root)).media.scan(["media_id", "colourfulness"], KEPT_IMAGE)
    limit = float(np.median(media["colourfulness"]))
    ask = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "a shape"}]
    named = [{"image": "images/scene_0001.png"}, {"image": media["media_id"][1].as_py()}, {}]
    chat = corpus / "chat.jsonl"
    chat.write_text("".join(json.dumps(name | {"conversations": ask}) + "\n" for name in named))
    document = yaml.safe_load(config.read_text())
    document["train"]["model"]["init_from"] = str(config)
    stage = {"select": {"image": {"bright": f"colourfulness > {limit}"}}, "dialogues": str(chat)}
    document["train"]["stages"] = {"tuned": {"data": stage | {"mixture": {"image": 0.5, "dialogue": 0.5}}}}
    tuning = tmp_path / "config.yaml"
    tuning.write_text(yaml.safe_dump(document))
    said = tokenmill("train", tuning).stdout
    assert "tuned: trained in 3 steps" in said and "tuned: not used: " in said
    [place] = root.glob("training/*-tuned-*/plan.json")
    plan = json.loads(place.read_text())
    assert plan["num_documents"] - 3 == sum(value > limit for value in media["colourfulness"].to_pylist())
    assert plan["num_dialogues"] == 3 and len(plan["ancestors"]) == 1
    again = run_phases(load(tuning), ("train",), "train", QUIET, plan_only=True)
    assert [step.num_read for step in again.steps] == [0]
    chat.write_text(chat.read_text() + json.dumps({"image": "images/none.png", "conversations": ask}) + "\n")
    refused = tokenmill("train", tuning, check=False)
    told = " ".join((refused.stdout + refused.stderr).split())
    assert "1 of 4 dialogues are about media that the catalog does not know: images/none.png (line 4)" in told
    assert refused.returncode == 1
    chat.unlink()


def run_here(config: Path) -> dict[str, int]:
    """Curate, caption and tokenize without Ray; what each phase read."""
    reports = run_phases(load(config, ["cluster.local_rows=1000"]), ("curate", "caption", "tokenize"), "run", QUIET)
    return {report.phase: report.num_read for report in reports.reports}


def test_without_ray_the_tables_are_the_same(undisturbed, tmp_path):
    corpus, on_ray, _ = undisturbed
    run_here(write_config(tmp_path, str(corpus), str(tmp_path / "root")))
    assert contents(tmp_path / "root") == contents(on_ray)


def test_a_refresh_does_exactly_the_work_of_the_change(undisturbed, tmp_path):
    corpus, root, _ = undisturbed
    shutil.copytree(corpus, tmp_path / "corpus", copy_function=shutil.copy2)
    config = write_config(tmp_path, str(tmp_path / "corpus"), str(tmp_path / "root"))
    run_here(config)
    before = contents(tmp_path / "root")
    images = sorted((tmp_path / "corpus" / "images").glob("*.png"))
    touched, deleted, changed, moved = images[0], images[1], images[2], images[3]
    os.utime(touched)
    deleted.unlink()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(changed)
    moved.rename(moved.with_name("zz_moved.png"))
    Image.open(images[4]).transpose(Image.Transpose.ROTATE_180).save(images[4].with_name("added.png"))
    images[5].with_suffix(".txt").write_text("new words for an old picture")

    assert run_here(config) == {"curate": 4, "caption": 4, "tokenize": 2}, (
        "touched, changed, moved, added; two new; one new caption; one left behind"
    )
    assert_accounts_hold(config)
    after = contents(tmp_path / "root")
    old, new = ({row["media_id"]: row for row in rows["tokens"]} for rows in (before, after))
    same = old.keys() & new.keys()
    assert len(new) == len(old) and len(same) == len(old) - 2
    assert all(old[i]["codes"] == new[i]["codes"] for i in same)
    assert {new[i]["caption"] for i in same if old[i]["caption"] != new[i]["caption"]} == {
        "new words for an old picture",
        None,
    }


def kill_after(config: Path, root: Path, table: str, version: int) -> None:
    """Run the line and kill -9 its driver as soon as `table` has that version."""
    log = root / table / "_delta_log" / f"{version:020d}.json"
    command = [sys.executable, "-m", "tokenmill", "run", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not log.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, "the run ended before it could be killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_kill_9_and_the_same_command_give_the_tables_of_an_undisturbed_run(undisturbed, tmp_path):
    corpus, expected_root, _ = undisturbed
    root = tmp_path / "root"
    config = write_config(tmp_path, str(corpus), str(root), shard_rows=4)  # a score of commits, whatever the pace
    kill_after(config, root, "media", 1)
    assert 0 < Catalog(str(root)).media.count() < Catalog(str(expected_root)).media.count()
    kill_after(config, root, "tokens", 1)
    assert 0 < Catalog(str(root)).tokens.count() < Catalog(str(expected_root)).tokens.count()
    tokenmill("run", config)
    assert contents(root) == contents(expected_root)


@pytest.mark.slow
def test_the_demo_on_s3(s3, tmp_path):
    """The same demo, its corpus, tables, checkpoints and pictures in a bucket."""
    sets = [f"root={s3}/demo", f"sources.0.uri={s3}/corpus", "cluster.num_cpus=2", "train.resources.num_workers=1"]
    sets += [f"train.{key}={json.dumps(value)}" for key, value in TINY_TRAINING.items()]
    arguments = [part for item in sets for part in ("--set", item)]
    output = tokenmill("demo", "--images", NUM_IMAGES, *arguments, cwd=tmp_path).stdout
    assert "captions never seen in training" in output
    assert not list(tmp_path.rglob("*.parquet")), "a table was written to the local disk"
    root = Catalog(f"{s3}/demo")
    assert root.tokens.count() > NUM_IMAGES / 2
