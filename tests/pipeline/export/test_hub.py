"""Parquet for the hub and captions as lines: what is kept, byte for byte; again = the difference; forgotten is gone."""

import io
import json
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.export_registry import exports
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.commands.forget import forget
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.export import hub
from tokenmill.pipeline.export.captions import export_captions
from tokenmill.pipeline.reports.video_file import write_video
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.pipeline.verify.outputs import find_exports
from tokenmill.pipeline.verify.problems import Aside

QUIET = Console(quiet=True)


@pytest.fixture
def config(tmp_path):
    """Nine images with captions, one too small, and a clip; the root is curated and captioned."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rng = np.random.default_rng(0)
    for number in range(9):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(corpus / f"{number}.png")
        (corpus / f"{number}.txt").write_text(f"picture {number}")
    Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(corpus / "tiny.png")
    frames = [np.roll(rng.integers(0, 255, (64, 64, 3), np.uint8), 4 * t, 1) for t in range(24)]
    write_video(corpus / "clip.mp4", frames, 12)
    (corpus / "clip.txt").write_text("noise that moves")
    rules = {"image_rules": {"large": "width_px >= 32"}, "video_rules": {"large": "width_px >= 32"}}
    made = RunConfig.model_validate(
        {"root": str(tmp_path / "root"), "sources": [{"uri": str(corpus)}], "curate": {"decide": rules}}
    )
    run_phases(made, ("curate", "caption"), "run", QUIET)
    return made


def files_of(out):
    return sorted(str(path.relative_to(out)) for path in Path(out).rglob("*.parquet"))


def rows_of(out, folder):
    return [
        row for name in files_of(out) if name.startswith(folder) for row in pq.read_table(Path(out, name)).to_pylist()
    ]


def test_media_are_there_byte_for_byte_with_what_the_hub_wants(config, tmp_path):
    out = tmp_path / "out"
    hub.export_parquet(config, str(out), "cc-by-4.0", 1, QUIET)
    images = rows_of(out, "images")
    originals = {path.read_bytes(): path.stem for path in (tmp_path / "corpus").glob("[0-9].png")}
    assert {originals[row["image"]["bytes"]]: row["caption"] for row in images} == {
        str(number): f"picture {number}" for number in range(9)
    }
    assert all(row["source"].endswith(".png") and row["image"]["path"].endswith(".png") for row in images)
    (clip,) = rows_of(out, "clips")
    with av.open(io.BytesIO(clip["video"]["bytes"])) as video:
        assert len(list(video.decode(video=0))) == 24
    assert clip["caption"] == "noise that moves" and clip["duration_s"] == pytest.approx(2.0)
    schema = pq.read_schema(out / files_of(out)[-1])
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"} and features["caption"] == {"dtype": "string", "_type": "Value"}
    assert set(features) == set(schema.names)
    card = (out / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["license"] == "cc-by-4.0" and header["size_categories"] == ["n<1K"]
    assert [each["data_files"] for each in header["configs"]] == ["images/*.parquet", "clips/*.parquet"]
    assert "9 images and 1 clips" in card and "large 1" in card and "width_px >= 32" in card


def test_the_datasets_library_opens_it(config, tmp_path):
    datasets = pytest.importorskip("datasets", reason="the datasets library is not installed")
    out = tmp_path / "out"
    hub.export_parquet(config, str(out), None, 256, QUIET)
    found = datasets.load_dataset("parquet", data_files=str(out / "images" / "*.parquet"), split="train")
    assert len(found) == 9 and found[0]["image"].size == (64, 64)


def test_again_it_writes_what_changed_and_what_is_forgotten_is_gone(config, tmp_path, monkeypatch):
    out, lines = tmp_path / "out", tmp_path / "captions.jsonl"
    monkeypatch.setattr(hub, "_spans", many_spans(hub._spans))
    hub.export_parquet(config, str(out), "mit", 256, QUIET)
    export_captions(config, str(lines), False, QUIET)
    before = {name: (out / name).stat().st_mtime_ns for name in files_of(out)}
    assert len(before) > 3
    hub.export_parquet(config, str(out), None, 256, QUIET)
    assert before == {name: (out / name).stat().st_mtime_ns for name in files_of(out)}, "nothing was written"
    assert {entry["kind"] for entry in exports(config.root)} == {"parquet", "captions"}
    told = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(told) == 10 and all(line["used"] and line["captioner"] == "source" for line in told)
    gone = rows_of(out, "images")[0]["media_id"]
    forget(config, [gone], QUIET)
    after = {name: (out / name).stat().st_mtime_ns for name in files_of(out)}
    assert len(rows_of(out, "images")) == 8 and gone not in lines.read_text()
    assert len(set(before) - set(after)) == 1, "the span that held it alone"
    assert all(after[name] == before[name] for name in set(before) & set(after))
    assert "license: mit" in (out / "README.md").read_text()


def many_spans(spans):
    return lambda kind, rows, _: spans(kind, rows, sum(row["size_bytes"] for row in rows) // 8)


def test_a_source_that_changed_is_left_out_and_tried_again(config, tmp_path):
    out = tmp_path / "out"
    place = tmp_path / "corpus" / "3.png"
    original = place.read_bytes()
    place.write_bytes(original[:-1])
    hub.export_parquet(config, str(out), None, 256, QUIET)
    assert len(rows_of(out, "images")) == 8
    place.write_bytes(original)
    hub.export_parquet(config, str(out), None, 256, QUIET)
    assert len(rows_of(out, "images")) == 9 and len(files_of(out)) == 2


def test_damage_is_found_and_written_again(config, tmp_path):
    out = tmp_path / "out"
    hub.export_parquet(config, str(out), None, 256, QUIET)
    assert not list(find_exports(config.root))
    file = out / files_of(out)[-1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    (problem,) = find_exports(config.root)
    assert problem.uri == str(file)
    problem.mend(Aside(config.root, "run"))
    hub.export_parquet(config, str(out), None, 256, QUIET)
    assert not list(find_exports(config.root)) and len(rows_of(out, "images")) == 9


def test_on_an_object_store(config, s3):
    hub.export_parquet(config, f"{s3}/out", None, 256, QUIET)
    export_captions(config, f"{s3}/captions.jsonl", True, QUIET)
    assert len(storage.list_names(f"{s3}/out/images")) == len(storage.list_names(f"{s3}/out/clips")) == 1
    assert storage.read_bytes(f"{s3}/captions.jsonl").count(b"\n") == 10
    assert not list(find_exports(Catalog(config.root).root))
