import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tokenmill import storage
from tokenmill.stages.tokenize.frames import LoadFramesConfig, fitted_size
from tokenmill.stages.tokenize.load_frames import LoadFrames
from tokenmill.stages.video.decode import Video
from tokenmill.storage.identity import clip_id, content_id

READS = LoadFrames.reads.append(pa.field("caption", pa.string()))
CONFIG = LoadFramesConfig(area_px=64 * 64, clip_fps=10.0, max_frames=16)


def _medium(path: Path | str, start_s: float | None = None, end_s: float | None = None, **changes) -> dict:
    file_id = content_id(storage.read_chunks(str(path))) if storage.exists(str(path)) else "gone"
    medium: dict[str, Any] = {"media_id": file_id, "kind": "image", "uri": str(path), "caption": "a cat"}
    if start_s is not None and end_s is not None:
        clip = {"kind": "video", "start_s": start_s, "end_s": end_s, "media_id": clip_id(file_id, start_s, end_s)}
        medium.update(clip)
    return {**medium, **changes}


def _table(*media: dict) -> pa.Table:
    return pa.Table.from_pylist(list(media), schema=READS)


def _frames(row: dict) -> np.ndarray:
    return np.frombuffer(row["frames"], np.uint8).reshape(row["frames_t"], row["frames_h"], row["frames_w"], 3)


@pytest.fixture
def counting(write_video) -> Path:
    """2 s at 25 frames per second; frame i has the level 4 * i."""
    return write_video("counting.mp4", [np.full((64, 96, 3), 4 * i, np.uint8) for i in range(50)])


def test_load_frames(tmp_path: Path, texture, counting: Path, write_video, check_stage) -> None:
    Image.fromarray(texture(300, 200)).save(tmp_path / "image.png")
    Image.fromarray(texture(60, 10)).save(tmp_path / "thin.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "image.png").read_bytes()[:3000])
    table = _table(
        _medium(tmp_path / "image.png"),
        _medium(counting, 1.0, 2.0),
        _medium(tmp_path / "thin.png"),
        _medium(counting, 0.0, 0.9),
        _medium(tmp_path / "cut.png"),
        _medium(counting, 0.5, 0.8),
        _medium(tmp_path / "gone.png"),
        _medium(tmp_path / "gone.mp4", 0.0, 1.0),
        _medium(tmp_path / "image.png", media_id="other"),
        _medium(counting, 0.0, 1.0, media_id="other"),
        _medium(tmp_path / "image.png", member="a.png"),
    )
    rows = check_stage(LoadFrames(CONFIG), table).to_pylist()
    reasons = [row["reject_reason"] for row in rows]
    assert reasons[:6] == [None, None, "aspect", None, "corrupt", "too_few_frames"]
    assert reasons[6:] == ["vanished", "vanished", "changed", "changed", "unreadable"]
    assert all((row["frames"] is None) == (row["reject_reason"] is not None) for row in rows)
    image = rows[0]
    assert (image["frames_t"], image["frames_h"], image["frames_w"], image["fps"]) == (1, 56, 80, None)
    expected = Image.fromarray(texture(300, 200)).resize((80, 56), Image.Resampling.BICUBIC)
    assert np.array_equal(_frames(image)[0], np.asarray(expected))
    later, earlier = rows[1], rows[3]
    assert (later["frames_t"], later["frames_trimmed"], later["fps"]) == (8, 2, 10.0)
    assert (earlier["frames_t"], earlier["frames_trimmed"]) == (8, 1)
    # At 10 per second, frames 0, 2 (at 0.08 s, shown at 0.1 s), 5, 7, ... of those stored at 25 per second.
    assert _frames(earlier).mean(axis=(1, 2, 3)) == pytest.approx([4 * (i * 25 // 10) for i in range(8)], abs=3)
    assert _frames(later).mean(axis=(1, 2, 3)) == pytest.approx([4 * (25 + i * 25 // 10) for i in range(8)], abs=3)


def test_slow_videos_repeat_frames_and_long_clips_stop_at_the_limit(write_video) -> None:
    path = write_video(
        "slow.mkv", [np.full((64, 64, 3), 50 * i, np.uint8) for i in range(4)], ticks=[0, 500, 1000, 3000]
    )
    (row,) = LoadFrames(CONFIG)(_table(_medium(path, 0.0, 3.5))).to_pylist()
    assert (row["frames_t"], row["frames_trimmed"]) == (16, 0)
    assert _frames(row).mean(axis=(1, 2, 3)) == pytest.approx([0] * 5 + [50] * 5 + [100] * 6, abs=3)


def test_rotated_clip_and_oriented_image_are_upright(shared_data) -> None:
    video = shared_data / "bad" / "videos" / "rotated_video.mp4"
    image = shared_data / "bad" / "images" / "Landscape_6.jpg"
    rows = LoadFrames(CONFIG)(_table(_medium(video, 0.0, 2.0), _medium(image))).to_pylist()
    assert rows[0]["frames_h"] > rows[0]["frames_w"] and rows[1]["frames_h"] < rows[1]["frames_w"]


def test_frames_are_those_of_a_sequential_pass(shared_data) -> None:
    path = shared_data / "videos" / "mov_bbb.mp4"
    config = LoadFramesConfig(area_px=600 * 330, clip_fps=25.0, max_frames=8)
    (row,) = LoadFrames(config)(_table(_medium(path, 3.8, 10.0))).to_pylist()
    with Video(str(path), 10**7) as video:
        frames = [video.upright(frame) for time_s, frame in video.frames() if 3.8 <= time_s < 4.12]
    sized = [np.asarray(Image.fromarray(f).resize((row["frames_w"], row["frames_h"]), 3)) for f in frames]
    assert np.array_equal(_frames(row), np.stack(sized))


def test_remote_media(counting: Path, tmp_path: Path, texture, s3: str) -> None:
    Image.fromarray(texture(64, 64)).save(tmp_path / "image.png")
    for path in (counting, tmp_path / "image.png"):
        storage.write_bytes(f"{s3}/{path.name}", path.read_bytes())
    load = LoadFrames(CONFIG)
    remote = load(
        _table(_medium(f"{s3}/counting.mp4", 0.0, 1.0), _medium(f"{s3}/image.png"), _medium(f"{s3}/gone.mp4", 0.0, 1.0))
    )
    local = load(_table(_medium(counting, 0.0, 1.0), _medium(tmp_path / "image.png")))
    assert remote["frames"].to_pylist() == [*local["frames"].to_pylist(), None]
    assert remote["reject_reason"].to_pylist() == [None, None, "vanished"]


def test_a_video_is_opened_once_for_its_clips(counting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = av.open

    def counted(*args: Any, **options: Any) -> Any:
        opened.append(args)
        return real(*args, **options)

    monkeypatch.setattr(av, "open", counted)
    LoadFrames(CONFIG)(_table(*(_medium(counting, start, start + 0.5) for start in (0.0, 1.0, 0.5))))
    assert len(opened) == 1


def test_small_media_keep_their_size_unless_enlarged() -> None:
    config = LoadFramesConfig(area_px=256 * 256, enlarge=False)
    assert fitted_size(64, 48, config) == (64, 48)
    assert fitted_size(64, 48, config.model_copy(update={"enlarge": True})) == (296, 224)
    assert fitted_size(1024, 1024, config) == (256, 256)


def test_a_medium_that_hangs_ends_its_worker(tmp_path):
    """Reading and decoding for the tokenizer have the time limit of a medium, as curating has."""
    os.mkfifo(tmp_path / "hangs.png")  # as a file on a disk that gives no answer
    code = f"""
import pyarrow as pa
from tokenmill.stages.table import limits
from tokenmill.stages.tokenize.frames import LoadFramesConfig
from tokenmill.stages.tokenize.load_frames import LoadFrames
limits.set_limits(limits.Limits(1.0))
row = {{"media_id": "m", "file_id": "m", "kind": "image", "uri": {str(tmp_path / "hangs.png")!r}}}
LoadFrames(LoadFramesConfig())(pa.Table.from_pylist([row], schema=LoadFrames.reads))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 1 and not done.stderr, "ended by the watchdog"
