"""`tokenizer eval` on a folder and on a catalog: numbers, pictures, what is left out and said, wrong options."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from transformers import JanusVQVAE, JanusVQVAEConfig

from tokenmill.pipeline.catalog.tables import CatalogError
from tokenmill.pipeline.config import ConfigError, load
from tokenmill.pipeline.reports.video_file import write_video
from tokenmill.pipeline.vision.evaluate import EvalOptions, evaluate
from tokenmill.pipeline.vision.media import Medium, Squares, from_folder, square
from tokenmill.pipeline.vision.report import published
from tokenmill.stages.read.media_bytes import Places


@pytest.fixture
def media(tmp_path):
    """Three images of 64 px and more, one of 20 px, a clip of two seconds, a short one, a broken file and a text."""
    folder = tmp_path / "media"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    tiles = [rng.integers(0, 256, (8, 10, 3), np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(3)]
    for number, tile in enumerate(tiles):
        Image.fromarray(tile).save(folder / "deep" / f"{number}.png")
    Image.fromarray(tiles[0][:20, :20]).save(folder / "small.png")
    write_video(folder / "long.mp4", [np.roll(tiles[0], shift, 1) for shift in range(24)], fps=12)
    write_video(folder / "short.mp4", [tiles[1]] * 4, fps=12)
    (folder / "broken.png").write_bytes((folder / "deep" / "0.png").read_bytes()[:80])
    (folder / "notes.txt").write_text("no medium")
    return folder


@pytest.fixture
def config(tmp_path, media):
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"root": str(tmp_path / "root"), "sources": [{"uri": str(media)}]}))
    return path


def call(config, options):
    console = Console(record=True, width=120, file=io.StringIO())
    return evaluate(config, options, console), console.export_text()


def test_a_folder_without_a_catalog(config, media, tmp_path):
    out = tmp_path / "out"
    found, text = call(load(config), EvalOptions(8, (32, 64), out, folder=media))
    rows = {(row["kind"], row["side_px"]): row for row in found["rows"]}
    assert {key: row["num_media"] for key, row in rows.items()} == {
        ("image", 32): 3,
        ("image", 64): 3,
        ("video", 32): 1,
        ("video", 64): 1,
    }
    assert json.loads((out / "eval.json").read_text()) == json.loads(json.dumps(found))
    assert found["model"] == "builtin" and found["codebook_size"] == 4608
    assert "corrupt 1" in text and "too_short 1" in text and "left out" in text
    assert "--lpips alexnet" in text and "--fid" in text and "Emu3 paper, Table 2" in text
    assert "3 images, 64 px" in text and "1 clips, 32 px" in text
    for name, least_px in (("reconstructions.png", 400), ("clips.png", 1000)):
        with Image.open(out / name) as picture:
            assert picture.width >= least_px and picture.height > 300
    assert not (tmp_path / "root").exists(), "a folder needs no catalog"


def test_the_catalogs_kept_media_are_curated_first(config, tmp_path):
    kept = load(config, ["curate.decide.image_rules.large_enough=min(width_px, height_px) >= 40"])
    found, _ = call(kept, EvalOptions(2, (32,), tmp_path / "out"))
    assert [(row["kind"], row["num_media"]) for row in found["rows"] if row["kind"] == "image"] == [("image", 2)]
    assert (tmp_path / "root" / "media").exists()
    again, _ = call(kept, EvalOptions(2, (32,), tmp_path / "out"))
    assert [row["psnr"] for row in again["rows"]] == [row["psnr"] for row in found["rows"]]


def test_a_tokenizer_of_images_leaves_clips_out_and_says_so(config, media, tmp_path):
    sizes = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "latent_channels": 8}
    JanusVQVAE(JanusVQVAEConfig(num_embeddings=64, num_patches=4, **sizes)).save_pretrained(tmp_path / "janus")
    janus = load(config, [f"tokenize.model={tmp_path / 'janus'}"])
    found, text = call(janus, EvalOptions(2, (32,), tmp_path / "out", folder=media))
    assert {row["kind"] for row in found["rows"]} == {"image"}
    assert "codes images only" in text and not (tmp_path / "out" / "clips.png").exists()


def test_wrong_options_are_refused_before_work(config, media, tmp_path):
    def refused(error, match, **changes):
        options = {"num_images": 2, "sides_px": (32,), "out": tmp_path / "out", "folder": media} | changes
        with pytest.raises(error, match=match):
            evaluate(load(config), EvalOptions(**options), Console(quiet=True))
        assert not (tmp_path / "out").exists()

    refused(ConfigError, "--sizes 36: builtin codes 8 x 8 px; give multiples", sides_px=(36, 64))
    refused(ConfigError, "--folder .*absent: no such folder", folder=tmp_path / "absent")
    refused(ConfigError, r"weights\.pth: cannot be read", lpips=tmp_path / "weights.pth")
    refused(CatalogError, "below 128 px.*pass smaller --sizes", sides_px=(128,))


def test_squares_are_the_protocols(media):
    rgb = np.asarray(Image.open(media / "deep" / "0.png"))
    assert rgb.shape == (64, 80, 3)
    np.testing.assert_array_equal(square(rgb, 64), rgb[:, 8:72])
    expected = np.asarray(Image.fromarray(rgb).resize((40, 32), Image.Resampling.BICUBIC))[:, 4:36]
    np.testing.assert_array_equal(square(rgb, 32), expected)
    frames = Squares([32, 64, 128], Places("")).of(Medium("video", str(media / "long.mp4")))
    assert {side: each.shape for side, each in frames.items()} == {32: (8, 32, 32, 3), 64: (8, 64, 64, 3)}
    # The middle 8 of 24 frames at 12 a second, each the tile rolled by its number.
    tile = rgb.astype(int)
    for place, frame in enumerate(frames[64]):
        errors = [np.abs(np.roll(tile, shift, 1)[:, 8:72] - frame).mean() for shift in range(24)]
        assert int(np.argmin(errors)) == 8 + place
    assert [medium.name for medium in from_folder(media)] == [medium.name for medium in from_folder(media)]


def test_published_rows_have_numbers_and_a_source():
    rows = published()
    assert sum(row["tokenizer"] == "Emu3" for row in rows) == 4
    for row in rows:
        assert row["source"] and 15 < float(row["psnr"]) < 40 and int(row["codes"]) > 1000
    assert len({tuple(row.values()) for row in rows}) == len(rows)
