"""Forgotten media are in no file of the root or of an export, and stay away; vacuum deletes what is not needed."""

from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.shard_files import write_shard
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.commands.forget import forget
from tokenmill.pipeline.commands.vacuum import vacuum
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.export.files import export_media
from tokenmill.pipeline.export.webdataset import export_webdataset
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.stages.caption.journal import Journal, answers_of
from tokenmill.training.job import DONE

QUIET = Console(quiet=True)
SECRET = "a caption of exactly one photo: zyxwvut"


@pytest.fixture
def config(tmp_path) -> RunConfig:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        tiles = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(tiles.repeat(8, 0).repeat(8, 1)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(SECRET if number == 1 else f"photo {number}")
    return RunConfig.model_validate(
        {
            "root": str(tmp_path / "root"),
            "sources": [{"uri": str(folder)}],
            "curate": {"decide": {"image_rules": {"large": "width_px >= 32"}}},
            "tokenize": {"frames": {"area_px": 4096}},
            "caption": {"resources": {"workers": 1}},
        }
    )


def run(config: RunConfig) -> Catalog:
    return run_phases(config, ("curate", "caption", "tokenize"), "run", QUIET).catalog


def holding(folder: Path, needle: bytes) -> list[str]:
    """Files below `folder` whose bytes, or whose Parquet columns, hold `needle`."""
    import pyarrow.parquet as pq

    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        values = [path.read_bytes()]
        if path.suffix == ".parquet" and path.stat().st_size:
            table = pq.read_table(path)
            values += [str(value).encode() for column in table.columns for value in column.to_pylist()]
        if any(needle in value for value in values):
            found.append(str(path.relative_to(folder)))
    return found


def test_what_is_forgotten_is_nowhere_and_stays_away(config, tmp_path):
    catalog = run(config)
    media = catalog.media.scan(["media_id", "uri"], pc.field("source_caption") == SECRET).to_pylist()
    (gone,) = media
    codes = str(catalog.tokens.scan(["codes"], pc.field("media_id") == gone["media_id"])["codes"][0].as_py())
    tars, images, root = tmp_path / "tars", tmp_path / "images", tmp_path / "root"
    export_webdataset(config, str(tars), None, 256, False, QUIET)
    export_media(config, "image", str(images), False, QUIET)
    places = (root, tars, images)
    assert all(holding(place, SECRET.encode()) for place in places)
    assert holding(root, codes.encode()) and (images / f"{gone['media_id']}.png").exists()

    with pytest.raises(CatalogError, match="1 of 2 are no known id or uri: nobody; nothing was forgotten"):
        forget(config, [gone["uri"], "nobody"], QUIET)
    whole = Path(catalog.tokens.files()[0])
    cut = whole.with_name("part-cut.parquet")  # as a writer that was killed leaves it
    cut.write_bytes(whole.read_bytes()[:-8])
    with Journal(answers_of(str(root), "f")).block(gone["media_id"]) as answers:  # of a run that was killed
        answers.add("key", {"caption": SECRET})
    forget(config, [gone["uri"]], QUIET)
    assert not cut.exists(), "nobody can tell what it holds"
    for needle in (SECRET, codes, gone["uri"]):
        assert [holding(place, needle.encode()) for place in places] == [[], [], []], needle
    assert not (images / f"{gone['media_id']}.png").exists()
    assert Catalog(config.root).tokens.count() == 3

    # Neither it nor a copy of it comes back, and neither is read twice.
    copy = Path(gone["uri"]).with_name("copy.png")
    copy.write_bytes(Path(gone["uri"]).read_bytes())
    copy.with_suffix(".txt").write_text(SECRET)
    assert run(config).media.count() == 3
    again = run_phases(config, ("curate",), "curate", QUIET)
    assert again.reports[0].num_read == 0 and again.catalog.media.count() == 3
    assert holding(root, SECRET.encode()) == []
    forget(config, [gone["media_id"]], QUIET)  # asked again, nothing is left to do


def test_vacuum_deletes_orphans_and_old_versions(config):
    catalog = run(config)
    rows = catalog.tokens.scan()
    orphan = write_shard(catalog.root, "tokens", rows)  # as a killed run leaves it
    catalog.tokens.edit(pc.field("media_id") == rows["media_id"][0], None, {"run_id": "x"})
    folder = Path(catalog.root) / "tokens"
    before = {path.name for path in folder.glob("*.parquet")}
    assert vacuum(config, 0, True, QUIET)["tokens"] == 2
    assert {path.name for path in folder.glob("*.parquet")} == before
    assert vacuum(config, 24, False, QUIET)["tokens"] == 0, "what is young stays"
    assert vacuum(config, 0, False, QUIET)["tokens"] == 2
    left = {path.name for path in folder.glob("*.parquet")}
    assert orphan.name not in left and len(left) == len(before) - 2
    assert Catalog(config.root).tokens.count() == 3


def test_vacuum_keeps_what_models_were_trained_on_and_says_what_it_cannot(config):
    catalog = run(config)
    version, rows = catalog.tokens.version, catalog.tokens.scan(["media_id"])["media_id"]
    storage.write_bytes(storage.join(catalog.root, "training", f"v{version:06d}-0123abcd", DONE), b"{}")
    catalog.tokens.edit(pc.field("media_id") == rows[0], None, {"run_id": "x"})

    def said():
        console = Console(record=True, width=200, file=StringIO())
        vacuum(config, 0, False, console)
        return console.export_text()

    assert f"Deleted; tokens versions {version}, which models were trained on, stay" in said()
    assert Catalog(config.root, version).tokens.count() == 4
    forget(config, [rows[1].as_py()], QUIET)
    assert f"versions {version}, which models were trained on, lost files before, by `tokenmill forget`" in said()
