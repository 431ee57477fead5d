"""Counts of rules and moved thresholds against counting by hand; sheets of one verdict; exports that are sources."""

import io
import json
import re
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from rich.console import Console

from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import RunConfig, Source
from tokenmill.pipeline.export.files import export_media
from tokenmill.pipeline.refresh.sources import list_sources
from tokenmill.pipeline.reports.rules_report import count_kept, count_rules, print_rules, scored_media, thresholds
from tokenmill.pipeline.reports.verdict_sheet import draw_verdict
from tokenmill.pipeline.reports.video_file import write_video
from tokenmill.pipeline.run.redecide import redecide
from tokenmill.stages.image.score import ScoreImages, ScoreImagesConfig
from tokenmill.stages.read.read import Read, ReadConfig
from tokenmill.stages.select.decide import Decide, DecideConfig
from tokenmill.stages.table.chain import Chain
from tokenmill.stages.table.columns import CAPTIONS, LISTED, MEDIA
from tokenmill.stages.table.rows import without
from tokenmill.stages.video.split import SplitVideos, SplitVideosConfig

RULES = {"large": "min(width_px, height_px) >= 100", "bright": "50 <= luminance <= 200 or chroma > 20"}
QUIET = Console(quiet=True)


def media(**columns) -> pa.Table:
    count = len(next(iter(columns.values())))
    filled = {field.name: columns.get(field.name, [None] * count) for field in MEDIA}
    return pa.table(filled | {"kind": ["image"] * count}, schema=MEDIA)


def test_counts_are_those_of_counting_by_hand():
    rng = np.random.default_rng(0)
    sides, lumas, chromas = rng.integers(10, 200, 500), rng.uniform(0, 255, 500), rng.uniform(0, 30, 500)
    rows = media(width_px=sides, height_px=sides + 5, luminance=lumas, chroma=chromas)
    small, dark = sides < 100, ~(((lumas >= 50) & (lumas <= 200)) | (chromas > 20))
    large, bright = count_rules(RULES, rows, ())
    assert (large.alone, large.in_sequence, large.only_this) == (small.sum(), small.sum(), (small & ~dark).sum())
    assert (bright.alone, bright.in_sequence) == (dark.sum(), (dark & ~small).sum())
    assert count_kept(RULES, rows, ()) == (~small & ~dark).sum()
    moved = {(each.rule, each.value): each.expressions for each in thresholds(RULES)}
    assert set(moved) == {("large", 100.0), ("bright", 50.0), ("bright", 200.0), ("bright", 20.0)}
    halved = count_kept({**RULES, "large": moved["large", 100.0][50.0]}, rows, ())
    assert halved == (~(sides < 50) & ~dark).sum()
    doubled = count_kept({**RULES, "bright": moved["bright", 20.0][40.0]}, rows, ())
    assert doubled == (~small & (lumas >= 50) & (lumas <= 200)).sum()


@pytest.fixture
def curated(tmp_path: Path) -> tuple[RunConfig, Path]:
    """A catalog of three images (one too small), one video of two scenes and one damaged file."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rng = np.random.default_rng(0)
    for name, side in (("a.png", 120), ("b.jpg", 140), ("tiny.png", 40)):
        Image.fromarray(rng.integers(60, 190, (side, side, 3), np.uint8)).save(corpus / name)
    (corpus / "cut.jpg").write_bytes((corpus / "b.jpg").read_bytes()[:700])
    flat = [np.full((64, 96, 3), 40 + 2 * index, np.uint8) for index in range(30)]
    noisy = [np.roll(rng.integers(0, 256, (64, 96, 3), np.uint8), index, 1) for index in range(31)]
    write_video(corpus / "two.mp4", flat + noisy, 12)
    decide = {"image_rules": RULES, "video_rules": {"any": "width_px >= 8"}}
    config = RunConfig.model_validate(
        {"root": str(tmp_path / "root"), "sources": [{"uri": str(corpus)}], "curate": {"decide": decide}}
    )
    uris = sorted(str(path) for path in corpus.iterdir())
    first = ((Read, (ReadConfig(),)), (ScoreImages, (ScoreImagesConfig(),)), (SplitVideos, (SplitVideosConfig(),)))
    chain = Chain([*first, (Decide, (DecideConfig(**decide),))])
    listed = {"uri": uris, "size_bytes": [1] * 5, "source_caption": [f"of {Path(uri).name}" for uri in uris]}
    rows = chain(pa.table(listed, schema=LISTED)).select(without(MEDIA, "fingerprint", "run_id").names)
    catalog = Catalog(config.root)
    catalog.create()
    for name in ("fingerprint", "run_id"):
        rows = rows.append_column(name, pa.array(["x"] * rows.num_rows))
    catalog.media.append(rows, {})
    kept = [row for row in rows.to_pylist() if row["reject_reason"] is None]
    captions = [{"media_id": r["media_id"], "caption": r["source_caption"], "captioner": "source"} for r in kept]
    catalog.captions.append(
        pa.Table.from_pylist([c | {"fingerprint": "x", "run_id": "x"} for c in captions], schema=CAPTIONS), {}
    )
    return config, corpus


def test_rules_and_sheets_are_drawn(curated, tmp_path):
    config, _ = curated
    assert scored_media(Catalog(config.root), "image").num_rows == 3, "what cannot be decoded has no scores"
    print_rules(config, tmp_path / "rules.png", QUIET)
    assert Image.open(tmp_path / "rules.png").width > 400
    for reason in ("kept", "large", "corrupt"):
        draw_verdict(config, reason, None, 8, 0, str(tmp_path / f"{reason}.png"), QUIET)
    grey = np.asarray(Image.open(tmp_path / "corrupt.png").convert("RGB"))
    assert (grey == 212).all(axis=-1).sum() > 100 * 100, "a damaged file is a grey tile"
    with pytest.raises(CatalogError, match=r"no medium has the verdict 'lorge'.*large \(1\)"):
        draw_verdict(config, "lorge", None, 8, 0, str(tmp_path / "x.png"), QUIET)


def test_redecide_changes_verdicts_and_opens_no_file(curated):
    config, corpus = curated
    for path in corpus.iterdir():
        path.unlink()
    looser = config.curate.decide.model_copy(update={"image_rules": {"large": "width_px >= 20"}})
    changed = config.model_copy(update={"curate": config.curate.model_copy(update={"decide": looser})})
    catalog = Catalog(config.root)
    files = catalog.media.scan(["uri", "file_id"]).to_pylist()
    sources = [{"uri": f["uri"], "etag": "e", "size_bytes": 1, "status": "present", "file_id": f["file_id"],
                "fingerprint": "x", "last_seen_run": "x"} for f in {f["uri"]: f for f in files}.values()]  # fmt: skip
    catalog.sources.append(pa.Table.from_pylist(sources, schema=catalog.sources.schema), {})
    redecide(changed, QUIET)
    rows = Catalog(config.root).media.scan(["uri", "reject_reason"]).to_pylist()
    assert {Path(row["uri"]).name: row["reject_reason"] for row in rows} == {
        "a.png": None, "b.jpg": None, "tiny.png": None, "cut.jpg": "corrupt", "two.mp4": None,
    }  # fmt: skip


def test_verdicts_of_other_rules_are_told(curated):
    config, _ = curated
    assert "stand otherwise" not in told(config)
    stricter = config.curate.decide.model_copy(update={"image_rules": {"large": "width_px >= 5000"}})
    changed = config.model_copy(update={"curate": config.curate.model_copy(update={"decide": stricter})})
    assert re.search(r"[2-9] stand otherwise in the tables: judged by other rules", told(changed))


def told(config):
    said = Console(width=200, file=io.StringIO())
    print_rules(config, None, said)
    return said.file.getvalue()


def test_an_export_is_exact_and_is_a_source(curated, tmp_path):
    config, corpus = curated
    out = tmp_path / "images"
    export_media(config, "image", str(out), False, QUIET)
    written = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix != ".jsonl"}
    assert sorted(written.values()) == sorted((corpus / name).read_bytes() for name in ("a.png", "b.jpg"))
    listed = list_sources([Source(uri=str(out))])
    assert sorted(listed.rows.read()["caption"].to_pylist()) == ["of a.png", "of b.jpg"]
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.suffix != ".jsonl"}
    (out / "stranger.png").write_bytes(b"x")
    export_media(config, "image", str(out), True, QUIET)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.suffix != ".jsonl"} == before

    clips = tmp_path / "clips"
    export_media(config, "video", str(clips), False, QUIET)
    lines = [json.loads(line) for line in (clips / "captions.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    with av.open(str(corpus / "two.mp4")) as container:
        source = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    found = []
    for line in sorted(lines, key=lambda line: line["start_s"]):
        with av.open(str(clips / line["file"])) as container:
            frames = list(container.decode(video=0))
        assert frames[0].time == 0
        assert frames[-1].time == pytest.approx((len(frames) - 1) / 12, abs=0.01)
        found += [frame.to_ndarray(format="rgb24").astype(int) for frame in frames]
    assert len(found) == len(source) == 61, "every frame once"
    assert max(np.abs(a - b).mean() for a, b in zip(found, source, strict=True)) < 8
