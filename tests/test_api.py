"""The public API: a corpus planned, run, read by others' libraries; nothing heavy is imported before."""

import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import polars
import pyarrow.compute as pc
import pytest
import yaml
from PIL import Image

import tokenmill

CURATED = ("curate", "caption", "tokenize")


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of four pictures, one too small to be kept, three of which were run, then all."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "photos").mkdir()
    document = {"root": str(folder / "root"), "sources": [{"uri": str(folder / "photos")}]}
    document["curate"] = {"decide": {"image_rules": {"large": "width_px >= 32"}}}
    document["tokenize"] = {"frames": {"area_px": 1024}}
    path = folder / "photos.yaml"
    path.write_text(yaml.safe_dump(document))
    draw(folder / "photos", 0, 48)
    draw(folder / "photos", 1, 64)
    draw(folder / "photos", 2, 24)
    tokenmill.run(tokenmill.load_config(path), CURATED, quiet=True)
    draw(folder / "photos", 3, 48)
    return path


def draw(folder: Path, number: int, side_px: int) -> None:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((side_px, side_px)).save(folder / f"{number}.png")


def test_a_plan_a_run_and_what_they_left(config_path):
    config = tokenmill.load_config(config_path, ["cluster.num_cpus=2"])
    opened = tokenmill.open(config)
    (step,) = [step for step in tokenmill.plan(config, ["curate"]) if step.num_read]
    assert (step.why, step.num_read) == ("new", 1)
    reports = tokenmill.run(config, CURATED, quiet=True)
    assert [report.num_read for report in reports] == [1, 1, 1]
    kept = opened.table("media", ["reject_reason"])["reject_reason"].null_count
    assert (opened.version, kept, len(opened.table("tokens"))) == (1, 2, 2), "as it was opened"
    dataset = tokenmill.open(config)
    assert dataset.root == tokenmill.open(config_path).root == tokenmill.open(config.root).root
    assert [run["version"] for run in dataset.versions()] == [1, 2]
    assert tokenmill.open(config_path, version=1).table("tokens").num_rows == 2
    assert [len(ids) for ids in dataset.difference(since=1).values()] == [1, 0, 0, 0]
    kept = dataset.table("media", ["media_id", "width_px"], pc.field("reject_reason").is_null())
    assert kept.column_names == ["media_id", "width_px"] and kept.num_rows == 3


def test_other_libraries_read_the_tables(config_path):
    dataset = tokenmill.open(config_path)
    expected = dataset.table("media").num_rows
    media = dataset.arrow_dataset("media")  # noqa: F841  DuckDB finds it by its name
    assert duckdb.sql("select count(*), min(width_px) from media").fetchall() == [(expected, 24)]
    wide = polars.scan_pyarrow_dataset(dataset.arrow_dataset("media")).filter(polars.col("width_px") > 40)
    assert len(wide.select("media_id").collect()) == expected - 1
    assert polars.read_parquet(dataset.files("tokens"))["codes"].list.len().to_list() == [16] * (expected - 1)


def test_what_is_not_there_is_said(config_path, tmp_path):
    with pytest.raises(tokenmill.UserError, match="no catalog there yet"):
        tokenmill.open(tmp_path)
    with pytest.raises(tokenmill.UserError, match="'pictures' is no table; they are sources, media"):
        tokenmill.open(config_path).table("pictures")
    with pytest.raises(tokenmill.UserError, match="there is no version 9"):
        tokenmill.open(config_path, version=9)
    with pytest.raises(tokenmill.UserError, match="no trained model yet"):
        tokenmill.sample(tokenmill.load_config(config_path), ["a red circle"])


@pytest.mark.parametrize("module", ["tokenmill", "tokenmill.pipeline.commands.cli"])
def test_nothing_heavy_is_imported_before_it_is_used(module):
    code = f"import sys, {module}; print(sorted(sys.modules.keys() & {{'torch', 'ray', 'pyarrow', 'numpy', 'pandas'}}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_strangers_of_the_same_names_are_not_imported(config_path, tmp_path):
    """Run in a folder with packages called as ours are; the worker processes, too, start there."""
    for name in ("storage", "tokenizer", "stages", "training", "pipeline", "configs", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('a stranger')\n")
    root = tmp_path / "root"
    config = f"tokenmill.load_config({str(config_path)!r}, ['root={root}'])"
    code = f"import tokenmill; tokenmill.run({config}, {CURATED}, quiet=True)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert tokenmill.open(root).table("tokens").num_rows == 3
