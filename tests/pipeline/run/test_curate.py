"""Curate on Ray: a changed rule scores exactly the media that it opens; near-duplicates stand aside and come back."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.reports.verdict_sheet import draw_verdict
from tokenmill.pipeline.run.run import Run
from tokenmill.pipeline.run.runner import run_phases


def photo(path: Path, side_px: int, seed: int) -> None:
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8))
    small.resize((side_px, side_px), Image.Resampling.BICUBIC).save(path, quality=92)


def page(path: Path, side_px: int) -> None:
    image = Image.new("RGB", (side_px, side_px), "white")
    for line in range(side_px // 30):
        ImageDraw.Draw(image).text((8, 30 * line), "The quick brown fox", "navy", ImageFont.load_default(24))
    image.save(path, quality=92)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    photo(folder / "large.jpg", 400, seed=0)
    photo(folder / "large_copy.jpg", 360, seed=0)  # the same picture, smaller
    photo(folder / "other.jpg", 400, seed=1)
    photo(folder / "small.jpg", 200, seed=2)
    page(folder / "page.jpg", 400)
    page(folder / "small_page.jpg", 240)
    return folder


def curate(tmp_path: Path, corpus: Path, large: str, **more) -> Run:
    rules = {"large": large, "little_text": "text_area <= 0.1"}
    part = {"text": {}, "decide": {"image_rules": rules}, "duplicates": {"near_radius": 6}, **more}
    made = {"root": str(tmp_path / "root"), "sources": [{"uri": str(corpus)}], "curate": part}
    return run_phases(RunConfig.model_validate(made), ("curate",), "curate", Console(quiet=True))


def verdicts(run: Run) -> dict[str, tuple[str | None, bool]]:
    """File name -> reason, and whether text was looked for."""
    rows = run.catalog.media.scan(["uri", "reject_reason", "scored"]).to_pylist()
    return {Path(row["uri"]).name: (row["reject_reason"], bool(row["scored"])) for row in rows}


def test_expensive_scores_and_duplicates(tmp_path, corpus):
    first = curate(tmp_path, corpus, "width_px >= 300")
    assert verdicts(first) == {
        "large.jpg": (None, True),
        "large_copy.jpg": (None, True),
        "other.jpg": (None, True),
        "page.jpg": ("little_text", True),
        "small.jpg": ("large", False),
        "small_page.jpg": ("large", False),
    }
    ids = {Path(row["uri"]).name: row["media_id"] for row in first.catalog.media.scan(["uri", "media_id"]).to_pylist()}
    aside = first.catalog.duplicates.scan(["media_id", "duplicate_of", "method"]).to_pylist()
    assert {row["media_id"]: row["duplicate_of"] for row in aside if row["method"] == "near"} == {
        ids["large_copy.jpg"]: ids["large.jpg"]
    }

    out = Console(record=True, width=200)
    draw_verdict(first.config, "near", None, 8, 0, str(tmp_path / "near.png"), out)
    assert "near: 1 of 1" in out.export_text() and (tmp_path / "near.png").stat().st_size > 1000

    versions = [table.version for table in first.catalog]
    again = curate(tmp_path, corpus, "width_px >= 300")
    assert again.reports[0].num_read == 0
    assert [table.version for table in again.catalog] == versions

    looser = curate(tmp_path, corpus, "width_px >= 100")
    assert looser.reports[0].num_read == 2, "only the two media that the rule opened"
    assert verdicts(looser)["small.jpg"] == (None, True)
    assert verdicts(looser)["small_page.jpg"] == ("little_text", True)
    assert looser.catalog.media.count() == 6

    tighter = curate(tmp_path, corpus, "width_px >= 380")
    assert tighter.reports[0].num_read == 0
    assert verdicts(tighter)["small.jpg"] == ("large", True), "what is known stays known"

    (corpus / "large.jpg").unlink()
    without = curate(tmp_path, corpus, "width_px >= 300")
    rows = {row["media_id"]: row["method"] for row in without.catalog.duplicates.scan().to_pylist()}
    assert rows[ids["large_copy.jpg"]] == "kept", "its better copy is gone"

    everything = curate(tmp_path, corpus, "width_px >= 1000", all_scores=True)
    assert all(scored for _, scored in verdicts(everything).values())
