from pathlib import Path

import numpy as np
import pytest

from tokenmill.stages.table.rows import RowError
from tokenmill.stages.video.decode import BrokenVideoError, Video

LIMIT = 8192 * 4320


def _sequence(path: Path) -> tuple[list[float], list[np.ndarray]]:
    times_s, pixels = [], []
    with Video(str(path), LIMIT) as video:
        try:
            for time_s, frame in video.frames():
                times_s.append(time_s)
                pixels.append(video.upright(frame))
        except BrokenVideoError:
            pass
    return times_s, pixels


def _check_chosen(path: Path, times_s: list[float], pixels: list[np.ndarray], picks: list[int]) -> None:
    """Frames at chosen times, in any order, are those of the sequential pass, also shortly before the next one."""
    with Video(str(path), LIMIT) as video:
        for i in picks:
            next_s = times_s[i + 1] if i + 1 < len(times_s) else times_s[i] + 0.04
            for time_s in (times_s[i], (times_s[i] + next_s) / 2):
                assert np.array_equal(video.upright(video.frame_at(time_s)), pixels[i]), (path.name, i)


def test_chosen_frames_are_exact(write_video, texture) -> None:
    frames = [np.roll(texture(96, 64), 2 * i, axis=1) for i in range(40)]
    for name, codec in (("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.ts", "libx264")):
        path = write_video(name, frames, codec=codec)
        times_s, pixels = _sequence(path)
        assert times_s == pytest.approx(np.arange(40) / 25, abs=0.002), name
        _check_chosen(path, times_s, pixels, [0, 3, 4, 17, 39, 20, 1])


def test_long_gaps_seek_and_stay_exact(write_video, texture) -> None:
    frames = [np.roll(texture(64, 48), i, axis=1) for i in range(300)]
    path = write_video("long.mp4", frames)
    times_s, pixels = _sequence(path)
    _check_chosen(path, times_s, pixels, [2, 200, 201, 299, 150, 0])


def test_real_files_are_exact(shared_data) -> None:
    rng = np.random.default_rng(0)
    for path in sorted((shared_data / "bad" / "videos").iterdir()) + [
        shared_data / "videos" / "clip_video_encode_vid1.mp4"
    ]:
        try:
            times_s, pixels = _sequence(path)
        except RowError:
            continue
        assert times_s[0] == 0 and np.all(np.diff(times_s) > 0)
        # In rising order: what a decoder conceals in a damaged file depends on where it came from.
        _check_chosen(path, times_s, pixels, sorted(rng.integers(0, len(times_s), 4).tolist()))


def test_variable_rates_are_kept(write_video, texture) -> None:
    ticks = [0, 40, 80, 500, 540, 1000, 3000]
    times_s, _ = _sequence(write_video("vfr.mkv", [texture(64, 48, i) for i in range(7)], ticks=ticks))
    assert times_s == pytest.approx([tick / 1000 for tick in ticks])


def test_rotation_and_pixel_aspect(shared_data) -> None:
    folder = shared_data / "bad" / "videos"
    for name, size in (("video_90.mov", (320, 568)), ("video_270.mov", (320, 568)), ("video_180.mov", (568, 320))):
        with Video(str(folder / name), LIMIT) as video:
            _, frame = next(video.frames())
            assert (video.width_px, video.height_px) == size
            assert video.upright(frame).shape == (size[1], size[0], 3)
    with Video(str(folder / "video_with_rectangular_samples.mp4"), LIMIT) as video:
        assert (video.width_px, video.height_px) == (1920, 1080)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken.mp4", "corrupt"),
        ("empty.flv", "corrupt"),
        ("ac3.mp4", "no_video_stream"),
        ("full_blocks.mkv", "no_video_stream"),
        ("subsample_encrypted_altref.webm", "no_frames"),
        ("small_AudioVideoInterleave.avi", "no_frames"),
    ],
)
def test_what_cannot_be_decoded(shared_data, name: str, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        Video(str(shared_data / "bad" / "videos" / name), LIMIT)
    assert caught.value.columns["reject_reason"] == reason
    assert str(shared_data) not in caught.value.columns["reject_detail"]


def test_pixel_limit(write_video, texture) -> None:
    path = write_video("a.mp4", [texture(64, 48)] * 2)
    with pytest.raises(RowError, match="too_many_pixels"):
        Video(str(path), 64 * 48 - 1)


def test_playlists_are_not_followed(tmp_path: Path, write_video, texture) -> None:
    secret = write_video("secret.mp4", [texture(64, 48)] * 2)
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile 'http://127.0.0.1:9/{secret.name}'\n")
    with pytest.raises(RowError):
        Video(str(playlist), LIMIT)
