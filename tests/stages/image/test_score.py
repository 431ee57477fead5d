from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokenmill.stages.image.score import ScoreImages, ScoreImagesConfig
from tokenmill.stages.read.read import Read, ReadConfig


def test_score_images(tmp_path: Path, texture, listed, check_stage, write_video) -> None:
    Image.fromarray(texture(400, 300)).save(tmp_path / "good.png")
    Image.fromarray(texture(40, 300)).save(tmp_path / "thin.jpg")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:5000])
    (tmp_path / "empty.jpg").write_bytes(b"")
    write_video("clip.mp4", [texture(64, 48)] * 3)
    names = ["good.png", "thin.jpg", "cut.png", "empty.jpg", "clip.mp4"]
    table = Read(ReadConfig())(listed(*(tmp_path / name for name in names)))
    output = check_stage(ScoreImages(ScoreImagesConfig()), table)
    rows = output.to_pylist()
    assert [row["reject_reason"] for row in rows] == [None, None, "corrupt", "empty_file", None]
    assert (rows[0]["width_px"], rows[0]["height_px"], rows[0]["num_frames"]) == (400, 300, 1)
    assert rows[0]["aspect"] == pytest.approx(4 / 3) and rows[1]["aspect"] == 7.5
    assert (rows[2]["width_px"], rows[2]["sharpness"]) == (400, None)
    scores = ("sharpness", "luminance", "contrast", "colourfulness")
    assert all(np.isfinite(rows[i][name]) for i in (0, 1) for name in scores)
    assert rows[4]["kind"] == "video" and rows[4]["width_px"] is None and rows[4]["path"]


def test_pixel_limit(tmp_path: Path, texture, listed) -> None:
    Image.fromarray(texture(400, 300)).save(tmp_path / "big.png")
    table = Read(ReadConfig())(listed(tmp_path / "big.png"))
    row = ScoreImages(ScoreImagesConfig(max_pixels=100_000))(table).to_pylist()[0]
    assert row["reject_reason"] == "too_many_pixels"


def test_reduced_decoding_changes_scores_little(tmp_path: Path, texture, listed) -> None:
    picture = Image.fromarray(texture(1600, 1200))
    picture.save(tmp_path / "reduced.jpg", quality=95)
    picture.save(tmp_path / "full.png")
    rows = ScoreImages(ScoreImagesConfig())(
        Read(ReadConfig())(listed(tmp_path / "reduced.jpg", tmp_path / "full.png"))
    ).to_pylist()
    assert rows[0]["luminance"] == pytest.approx(rows[1]["luminance"], abs=1)
    assert rows[0]["sharpness"] == pytest.approx(rows[1]["sharpness"], rel=0.15)
    assert (int(rows[0]["phash"], 16) ^ int(rows[1]["phash"], 16)).bit_count() <= 2
