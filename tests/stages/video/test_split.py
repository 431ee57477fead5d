import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from scenedetect.common import FrameTimecode
from scenedetect.detectors import ContentDetector, ThresholdDetector

from tokenmill.stages.image.score import ScoreImages, ScoreImagesConfig
from tokenmill.stages.read.read import Read, ReadConfig
from tokenmill.stages.video.split import Cuts, Fades, SplitVideos, SplitVideosConfig
from tokenmill.storage.identity import clip_id


@pytest.fixture
def split(listed):
    """Rows of SplitVideos for files."""

    def run(*paths: Path, **config) -> list[dict]:
        table = ScoreImages(ScoreImagesConfig())(Read(ReadConfig())(listed(*paths)))
        return SplitVideos(SplitVideosConfig(**config))(table).to_pylist()

    return run


def _spans(rows: list[dict]) -> list[tuple[float, float]]:
    return [(row["start_s"], row["end_s"]) for row in rows]


def test_split_videos(tmp_path: Path, texture, listed, write_video, check_stage) -> None:
    Image.fromarray(texture(64, 48)).save(tmp_path / "image.png")
    (tmp_path / "cut.mp4").write_bytes(b"\0\0\0\x18ftypisom" + 50 * b"\0")
    video = write_video("two.mp4", [texture(128, 96)] * 30 + [texture(128, 96, seed=1)] * 30)
    thirds = write_video("three.mkv", [np.roll(texture(96, 64), i, axis=1) for i in range(40)])
    table = Read(ReadConfig())(listed(tmp_path / "image.png", video, tmp_path / "cut.mp4", thirds, tmp_path / "no.mp4"))
    table = ScoreImages(ScoreImagesConfig())(table)
    rows = check_stage(SplitVideos(SplitVideosConfig()), table).to_pylist()
    assert [row["kind"] for row in rows] == ["image", "video", "video", "video", "video", "unknown"]
    assert [row["reject_reason"] for row in rows] == [None, None, None, "corrupt", None, "vanished"]
    assert _spans(rows[1:3]) == [(0.0, 1.2), (1.2, 2.4)]
    assert rows[0]["phash"] is not None and rows[0]["start_s"] is None
    assert rows[3]["media_id"] == rows[3]["file_id"]
    first = rows[1]
    assert first["media_id"] == clip_id(first["file_id"], 0.0, 1.2) != rows[2]["media_id"]
    assert (first["num_frames"], first["duration_s"], first["fps"]) == (30, 1.2, pytest.approx(25))
    assert (first["width_px"], first["height_px"], first["format"]) == (128, 96, "h264")
    assert first["uri"] == str(video) and first["phash"] != rows[2]["phash"]


def test_long_scenes_are_split_evenly_and_short_ones_stay(split, write_video, texture) -> None:
    path = write_video("long.mp4", [texture(96, 64)] * 100 + [texture(96, 64, seed=1)] * 16)
    rows = split(path, max_clip_s=1.5)
    assert _spans(rows) == [(0, 1.36), (1.36, 2.68), (2.68, 4), (4, 4.64)]
    assert sum(row["num_frames"] for row in rows) == 116
    assert all(row["reject_reason"] is None and row["sharpness"] is not None for row in rows)


def test_fades_end_scenes(split, write_video, texture) -> None:
    levels = [1] * 30 + list(np.linspace(1, 0, 20)) + list(np.linspace(0, 1, 20)) + [1] * 30
    grey = np.repeat(texture(96, 64)[..., :1], 3, axis=2)  # in colour, the hues of near black would be cuts
    path = write_video("fade.mp4", [(level * grey).astype(np.uint8) for level in levels])
    assert [start for start, _ in _spans(split(path))] == pytest.approx([0, 2.0], abs=0.1)
    assert len(split(path, fade_threshold=0)) == 1


def test_flow_measures_motion_per_half_second(split, write_video, texture) -> None:
    wide = cv2.resize(texture(128, 24), (512, 96), interpolation=cv2.INTER_CUBIC)
    for fps, step in ((25, 1), (10, 3)):
        frames = [wide[:, i * step : i * step + 160] for i in range(3 * fps)]
        ticks = [round(1000 * i / fps) for i in range(3 * fps)]
        (row,) = split(write_video(f"pan{fps}.mkv", frames, ticks=ticks))
        assert row["flow"] == pytest.approx(0.5 * fps * step / 96, rel=0.1)
    (still,) = split(write_video("still.mp4", [texture(160, 96)] * 50))
    assert still["flow"] < 0.003 and still["flicker"] < 0.1


def test_flicker(split, write_video) -> None:
    frames = [np.full((64, 96, 3), 100 + 20 * (i % 2), np.uint8) for i in range(40)]
    (row,) = split(write_video("flicker.mp4", frames))
    assert row["flicker"] == pytest.approx(20, abs=2)


def test_gaps_in_time_make_no_empty_clips(split, write_video, texture) -> None:
    ticks = [40 * i for i in range(50)] + [200_000 + 40 * i for i in range(50)]
    rows = split(write_video("gap.mkv", [texture(96, 64)] * 100, ticks=ticks), max_clip_s=10.0)
    assert all(row["num_frames"] > 0 for row in rows) and sum(row["num_frames"] for row in rows) == 100
    assert [row["start_s"] for row in rows[1:]] == [row["end_s"] for row in rows[:-1]]


def test_nothing_of_a_broken_video_disappears(split, write_video, texture, tmp_path: Path) -> None:
    whole = write_video("whole.ts", [np.roll(texture(320, 240), 3 * i, axis=1) for i in range(100)])
    long = split(whole, max_duration_s=2.0)
    assert _spans(long)[0] == pytest.approx((0, 2), abs=0.01)
    assert [row["reject_reason"] for row in long] == [None, "too_long"]
    moving = [np.roll(texture(320, 240), 3 * i, axis=1) for i in range(100)]
    data = write_video("whole.mp4", moving, movflags="faststart").read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: len(data) // 2])
    rows = split(cut)
    assert [row["reject_reason"] for row in rows] == [None, "broken_tail"]
    assert rows[0]["end_s"] == rows[1]["start_s"] < 4.0 == pytest.approx(rows[1]["end_s"])
    assert len({row["media_id"] for row in rows}) == 2


def test_broken_real_files_keep_what_decodes(split, shared_data) -> None:
    rows = split(shared_data / "bad" / "videos" / "corrupted.mp4")
    assert [(row["reject_reason"], row["num_frames"]) for row in rows] == [(None, 28), ("broken_tail", None)]
    assert _spans(rows) == [(0.0, 2.8), (2.8, 5.0)]


def test_temporary_files_are_deleted(listed, write_video, texture) -> None:
    path = write_video("remote.mp4", [texture(64, 48)] * 5)
    table = ScoreImages(ScoreImagesConfig())(Read(ReadConfig())(listed(path)))
    place = table.schema.get_field_index("path_is_temporary")
    table = table.set_column(place, table.schema.field(place), pa.array([True]))
    assert SplitVideos(SplitVideosConfig())(table).num_rows == 1
    assert not path.exists()


def test_tiny_frames_have_no_flow(split, write_video, texture) -> None:
    (row,) = split(write_video("tiny.mp4", [texture(200, 16)] * 40))
    assert row["flow"] is None and row["sharpness"] is not None


def test_true_cuts_of_real_videos_are_found(split, shared_data) -> None:
    lines = [json.loads(line) for line in (shared_data / "cuts.jsonl").read_text().splitlines()]
    for truth in (line for line in lines if line["complete"]):
        # Fades are checked above: a dark opening counts as one, which the list of cuts does not know.
        rows = split(shared_data / truth["file"], fade_threshold=0)
        found = [row["start_s"] for row in rows[1:]]
        assert found == pytest.approx(truth["hard_cut_time_s"], abs=0.1), truth["file"]


def test_scene_ends_are_those_of_the_library() -> None:
    rng = np.random.default_rng(0)
    shots = rng.integers(0, 256, (12, 36, 64, 3), np.uint8)
    lengths = [9, 1, 2, 20, 3, 3, 3, 30, 1, 1, 1, 14]  # flashes, fast cutting, long shots
    frames = [shot for shot, length in zip(shots, lengths, strict=True) for _ in range(length)]
    fade = np.concatenate([np.linspace(1, 0, 8), np.linspace(0, 1, 8), np.ones(30)])
    frames += [(level * shots[0]).astype(np.uint8) for level in np.concatenate([fade, fade, fade])]
    for min_frames in (0, 2, 15):
        cuts, fades = Cuts(27.0, min_frames), Fades(12, min_frames)
        their_cuts, their_fades = ContentDetector(27.0, min_frames), ThresholdDetector(12, min_frames)
        seen = []
        for number, frame in enumerate(frames):
            at = FrameTimecode(number, 25.0)
            expected = [
                [cut.frame_num for cut in their.process_frame(at, frame)] for their in (their_cuts, their_fades)
            ]
            assert [cuts.at(number, frame), fades.at(number, float(frame.mean()))] == expected, number
            seen += expected
        assert sum(map(len, seen)) > 3
