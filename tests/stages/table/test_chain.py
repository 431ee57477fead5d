"""The curate phase as a whole, on real files: nothing raises, nothing disappears, bad files get the right reasons."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tokenmill.stages.embed.score_clip import ClipConfig, ScoreClip
from tokenmill.stages.image.score import ScoreImages, ScoreImagesConfig
from tokenmill.stages.read.read import Read, ReadConfig
from tokenmill.stages.select.decide import Decide, DecideConfig
from tokenmill.stages.table.columns import MEDIA
from tokenmill.stages.table.rows import without
from tokenmill.stages.video.split import SplitVideos, SplitVideosConfig

BAD = {
    "65536-uint32-limit.png": "too_many_pixels",
    "animated-loop-3.webp": "animated",
    "apng_dispose_op_background.png": "animated",
    "broken.png": "corrupt",
    "broken_data_stream.png": "corrupt",
    "chi.gif": "animated",
    "circle.svg": "unsupported_format",
    "corrupt-header.jpg": "corrupt",
    "crash-1152ec2d1a1a71395b6f2ce6721c38924d025bf3.tif": "corrupt",
    "decompression_bomb.gif": "too_many_pixels",
    "decompression_bomb_extents.gif": "animated",
    "giant-image.jpg": "too_many_pixels",
    "iss634.webp": "animated",
    "png_decompression_dos.png": "corrupt",
    "rotating-squares.gif": "animated",
    "sample_still_photo.heic": "unsupported_format",
    "struct-image-04-t.svg": "unsupported_format",
    "truncated.jpg": "corrupt",
    "truncated.png": "corrupt",
    "truncated_end_chunk.png": "corrupt",
    "truncated_image.png": "corrupt",
    "truncated_jpeg.jpg": "corrupt",
    "ukbench09268_corrupt.jpg": "unknown_format",
    "ultrahdr.jpg": "corrupt",
    "unknown_compression_method.png": "corrupt",
    "zero_byte_apple-touch-icon.png": "empty_file",
    "zero_byte_foo.png": "empty_file",
    "zero_width.gif": "corrupt",
    "ac3.mp4": "no_video_stream",
    "annex-b.mp4": "broken_tail",
    "broken.mp4": "corrupt",
    "corrupted.mp4": "broken_tail",
    "empty.flv": "corrupt",
    "full_blocks.mkv": "no_video_stream",
    "sample_fragmented_sideloaded_track.mp4": "corrupt",
    "small_AudioVideoInterleave.avi": "no_frames",
    "small_FlashVideo.flv": "corrupt",
    "subsample_encrypted_altref.webm": "no_frames",
    "video_without_video_stream.mp4": "no_video_stream",
    "weird_aspect.small.mpg": "broken_tail",
}


@pytest.fixture(scope="module")
def curate():
    """Read -> ScoreImages -> SplitVideos -> ScoreClip -> Decide."""
    stages: list[Any] = [
        Read(ReadConfig()),
        ScoreImages(ScoreImagesConfig()),
        SplitVideos(SplitVideosConfig()),
        ScoreClip(ClipConfig()),
        Decide(DecideConfig(image_rules={"resolution": "min(width_px, height_px) >= 64"}, video_rules={})),
    ]

    def run(table: pa.Table) -> pa.Table:
        for stage in stages:
            table = stage(table)
        return table

    return run


def test_bad_files(curate, listed, shared_data: Path, capfd: pytest.CaptureFixture) -> None:
    paths = [path for folder in ("images", "videos") for path in sorted((shared_data / "bad" / folder).iterdir())]
    output = curate(listed(*paths))
    assert output.drop(["ends_container"]).schema.equals(without(MEDIA, "fingerprint", "run_id"))
    rows = output.to_pylist()
    assert {row["uri"] for row in rows} == {str(path) for path in paths}
    small = {"2x2_fdcce6.png", "tbgn2c16.png", "tiny.png"}
    for path in paths:
        reasons = [row["reject_reason"] for row in rows if row["uri"] == str(path)]
        expected = "resolution" if path.name in small else BAD.get(path.name)
        assert reasons[-1] == expected and set(reasons[:-1]) <= {None}, path.name
    for row in rows:
        assert (row["reject_reason"] is None) == (row["reject_detail"] is None)
        assert (row["kind"] == "video") == (row["start_s"] is not None) or row["reject_reason"]
    assert capfd.readouterr() == ("", "")


def test_good_files(curate, listed, shared_data: Path) -> None:
    images = sorted((shared_data / "images").rglob("*.*"))[::12]
    videos = [shared_data / "videos" / name for name in ("av1_video.mkv", "h265_10bits.mp4", "rails_video.webm")]
    output = curate(listed(*images, *videos))
    assert output.num_rows == len(images) + len(videos)
    reasons = set(output["reject_reason"].to_pylist())
    assert reasons <= {None, "resolution", "animated", "unsupported_format"}
    assert output["phash"].null_count == sum(
        r in ("animated", "unsupported_format") for r in output["reject_reason"].to_pylist()
    )


def test_a_bad_neighbour_changes_nothing(curate, listed, shared_data: Path) -> None:
    bad = sorted((shared_data / "bad" / "images").iterdir())[:20]
    good = sorted((shared_data / "images" / "coco_mini").iterdir())[:3]
    alone = curate(listed(*good)).to_pylist()
    among = [row for row in curate(listed(*bad[:10], *good, *bad[10:])).to_pylist() if Path(row["uri"]) in good]
    assert among == alone
