from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
import pytest

from tokenmill.stages.table.rows import RowError
from tokenmill.stages.video import frames, sparse
from tokenmill.stages.video.decode import BrokenVideoError, Video
from tokenmill.stages.video.frames import frames_at

LIMIT = 8192 * 4320


def _pictures(path: Path, times_s: list[float]) -> list[np.ndarray]:
    with Video(str(path), LIMIT) as video:
        return [video.upright(frame) for frame in frames_at(video, times_s)]


def _starts(path: Path) -> list[float]:
    starts_s = []
    with Video(str(path), LIMIT) as video:
        try:
            for time_s, _ in video.frames():
                starts_s.append(time_s)
        except BrokenVideoError:
            pass
    return starts_s


def _sequential(path: Path, times_s: list[float]) -> list[np.ndarray]:
    """Pictures at rising times from a pass over the whole file."""
    shown: list[np.ndarray] = []
    held = None
    with Video(str(path), LIMIT) as video:
        try:
            for time_s, frame in video.frames():
                while len(shown) < len(times_s) and time_s > times_s[len(shown)] + 1e-6:
                    shown.append(video.upright(held))
                held = frame
        except BrokenVideoError:
            pass
        return shown + [video.upright(held)] * (len(times_s) - len(shown))


def _assert_same(pictures: list[np.ndarray], others: list[np.ndarray], what: object) -> None:
    assert len(pictures) == len(others), what
    for i, (picture, other) in enumerate(zip(pictures, others, strict=True)):
        assert np.array_equal(picture, other), (what, i)


def test_real_files_give_the_frames_of_a_sequential_pass(shared_data) -> None:
    """At twelve evenly spaced times, at the first and, where its end is declared right, at the last frame."""
    num_read = 0
    for path in sorted([*(shared_data / "videos").iterdir(), *(shared_data / "bad" / "videos").iterdir()]):
        try:
            with Video(str(path), LIMIT) as video:
                end_s = video.declared_s or 5.0
        except RowError as rejected:
            with pytest.raises(RowError) as caught:
                _pictures(path, [0.0])
            assert caught.value.columns == rejected.columns, path.name
            continue
        times_s = [0.0, *((np.arange(12) + 0.5) / 12 * end_s).tolist(), end_s]
        _assert_same(_pictures(path, times_s), _sequential(path, times_s), path.name)
        num_read += 1
    assert num_read > 30


@pytest.fixture
def encode(tmp_path: Path) -> Callable[..., Path]:
    """A moving texture by the encoder's `options`; `size` is (width, height)."""

    def make(
        name: str,
        num: int,
        size: tuple[int, int] = (64, 48),
        codec: str = "libx264",
        format: str = "yuv420p",
        container_options: dict[str, str] | None = None,
        **options: str,
    ) -> Path:
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        with av.open(str(tmp_path / name), "w", options=container_options or {}) as container:
            stream = container.add_stream(codec, rate=25, options={"preset": "ultrafast", **options})
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = *size, format
            for i in range(num):
                moved = np.roll(noise, 2 * i, axis=1)[: size[1], : size[0]]
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(moved), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return tmp_path / name

    return make


@pytest.fixture
def long_group(encode, monkeypatch) -> Path:
    """One group of 110 pictures that all refer to one another; decord is worth it for such small ones, too."""
    monkeypatch.setattr(frames, "_WORTH_PIXELS", 0)
    return encode("long.mp4", 110, g="500", bf="0", sc_threshold="0")


def _reader(path: Path) -> str:
    with Video(str(path), LIMIT) as video:
        return frames.reader(video, 100.0)


def test_decord_reads_long_groups_and_gives_the_very_frames(long_group, monkeypatch) -> None:
    assert _reader(long_group) == "decord"
    monkeypatch.setattr(Video, "frame_at", None)  # not asked, as PyAV's other way
    monkeypatch.setattr(sparse, "frames", None)
    times_s = [0.0, 0.039, 0.04, 2.0, 2.0, 4.36, 9.0]
    _assert_same(_pictures(long_group, times_s), _sequential(long_group, times_s), "decord")


def test_decord_is_not_asked_where_it_errs_or_cannot_gain(encode, long_group, shared_data) -> None:
    with Video(str(long_group), LIMIT) as video:
        assert frames.reader(video, 3.0) == "sparse"  # only the first 75
    one_group = {"num": 110, "g": "500", "bf": "0", "sc_threshold": "0"}
    assert _reader(encode("two_groups.mp4", **{**one_group, "g": "60"})) == "sparse"
    assert _reader(encode("reordered.mp4", **{**one_group, "bf": "2"})) == "sparse"
    assert _reader(encode("ten_bits.mp4", format="yuv420p10le", **one_group)) == "sparse"
    assert _reader(encode("a.mkv", **one_group)) == "sparse"
    for name in ("clip_video_encode_vid1.mp4", "clip_video_encode_vid2.mp4"):  # edit lists
        assert _reader(shared_data / "videos" / name) == "sparse"


def test_decord_is_not_asked_for_little(long_group, monkeypatch) -> None:
    monkeypatch.undo()
    assert _reader(long_group) == "sparse"


def test_an_edit_list_is_seen(long_group, monkeypatch) -> None:
    """The same file that decord would read, its first 20 pictures cut away by an edit list alone."""
    content = long_group.read_bytes()
    at = content.index(b"elst") + 4
    assert content[at : at + 8] == bytes([0, 0, 0, 0, 0, 0, 0, 1])  # version 0, one entry: duration, media time, rate
    with Video(str(long_group), LIMIT) as video:
        step = 20 * int(1 / 25 / video.stream.time_base)
    media_time = int.from_bytes(content[at + 12 : at + 16], "big") + step
    cut = long_group.with_name("cut.mp4")
    cut.write_bytes(content[: at + 12] + media_time.to_bytes(4, "big") + content[at + 16 :])
    assert _reader(cut) == "sparse"
    _assert_same(_pictures(cut, [0.0, 1.0]), _sequential(cut, [0.0, 1.0]), "cut")
    assert not np.array_equal(_pictures(cut, [0.0])[0], _pictures(long_group, [0.0])[0])


def test_pyav_reads_where_decord_fails_or_differs(long_group, monkeypatch) -> None:
    right = _sequential(long_group, [1.0, 3.0])

    class Broken:
        def __init__(self, *_: object, **__: object):
            raise decord.DECORDError("no")

    class Other(decord.VideoReader):
        def __getitem__(self, number):
            return super().__getitem__(number + 1)

    for stand_in in (Broken, Other):
        monkeypatch.setattr(decord, "VideoReader", stand_in)
        with Video(str(long_group), LIMIT) as video, pytest.raises((decord.DECORDError, sparse.NotExactError)):
            next(frames._by_decord(video, [1.0]))
        _assert_same(_pictures(long_group, [1.0, 3.0]), right, stand_in)


def test_times_in_any_order_repeated_and_past_the_end(encode) -> None:
    path = encode("a.mp4", 60, g="20", bf="3")
    starts_s = _starts(path)
    rising = [-1.0, 0.0, 0.5, 0.5, 1.1, starts_s[-1], 100.0]
    expected = _sequential(path, [0.0, *rising[1:]])
    _assert_same(_pictures(path, rising), expected, "rising")
    order = [4, 6, 0, 2, 3, 1, 5]
    _assert_same(_pictures(path, [rising[i] for i in order]), [expected[i] for i in order], "any order")
    assert _pictures(path, []) == []


def test_one_video_is_asked_again(encode) -> None:
    path = encode("a.mp4", 60, g="20", bf="3")
    expected = _sequential(path, [0.3, 1.7, 2.0])
    with Video(str(path), LIMIT) as video:
        for _ in range(2):
            _assert_same([video.upright(frame) for frame in frames_at(video, [0.3, 1.7, 2.0])], expected, "again")
        assert np.array_equal(video.upright(video.frame_at(0.3)), expected[0])
        next(frames_at(video, [1.7, 2.0]))
        assert np.array_equal(video.upright(video.frame_at(1.7)), expected[1])
        assert np.array_equal(video.upright(next(frames_at(video, [0.3]))), expected[0])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("open.mp4", {"g": "15", "bf": "3", "x264-params": "open-gop=1"}),
        ("pyramid.mkv", {"g": "100", "bf": "7", "x264-params": "b-adapt=0:b-pyramid=normal"}),
        ("intra.mp4", {"g": "1"}),
        ("a.ts", {"g": "25", "bf": "2"}),
        ("a.avi", {"g": "25", "bf": "2"}),
        ("refresh.mp4", {"g": "40", "x264-params": "intra-refresh=1"}),
        ("layers.mp4", {"codec": "libx265", "x265-params": "log-level=none:keyint=30:bframes=3:temporal-layers=3"}),
        ("open_hevc.mp4", {"codec": "libx265", "x265-params": "log-level=none:keyint=15:min-keyint=15:open-gop=1"}),
        ("hidden.webm", {"codec": "libvpx", "g": "30", "auto-alt-ref": "1", "lag-in-frames": "16"}),
        ("super.webm", {"codec": "libvpx-vp9", "g": "30", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}),
    ],
)
def test_kinds_of_groups(encode, name: str, options: dict[str, str]) -> None:
    try:
        path = encode(name, 120, **options)
    except av.codec.codec.UnknownCodecError:  # a PyAV built without it; any other failure is one
        pytest.skip(f"no encoder here: {options.get('codec', 'libx264')}")
    rng = np.random.default_rng(1)
    starts_s = _starts(path)
    for num in (1, 4, 12, 40):
        times_s = np.sort(rng.uniform(0, starts_s[-1] + 0.1, num)).tolist()
        _assert_same(_pictures(path, times_s), _sequential(path, times_s), num)


def test_long_gaps_are_sought_over(encode, monkeypatch) -> None:
    path = encode("long.mp4", 1500, g="50", bf="2")
    sought: list[float] = []
    seek = Video.seek
    monkeypatch.setattr(Video, "seek", lambda video, time_s: (sought.append(time_s), seek(video, time_s)))
    times_s = [0.5, 20.02, 20.7, 41.0, 59.9]
    _assert_same(_pictures(path, times_s), _sequential(path, times_s), "sought")
    assert len(sought) >= 3


def test_key_frames_that_are_not_idr_pictures_are_sought_where_far(encode, monkeypatch) -> None:
    path = encode("open.mp4", 1500, g="15", bf="2", **{"x264-params": "open-gop=1:scenecut=0"})
    num_packets = 0
    original = sparse._Sparse._give

    def counted(self, packets, wanted_s):
        nonlocal num_packets
        for packet in original(self, packets, wanted_s):
            num_packets += 1
            yield packet

    monkeypatch.setattr(sparse._Sparse, "_give", counted)
    times_s = [0.5, 52.0]
    _assert_same(_pictures(path, times_s), _sequential(path, times_s), "far")
    assert num_packets < 600


def test_what_no_frame_needs_is_not_decoded(encode, monkeypatch) -> None:
    path = encode("a.mp4", 200, g="40", bf="3", **{"x264-params": "b-adapt=0:b-pyramid=none:scenecut=0"})
    num_decoded = 0
    original = Video.first_and_those_of

    def counted(video, packets):
        nonlocal num_decoded
        for timed in original(video, packets):
            num_decoded += 1
            yield timed

    monkeypatch.setattr(Video, "first_and_those_of", counted)
    times_s = [0.0, 3.0, 7.0]
    _assert_same(_pictures(path, times_s), _sequential(path, times_s), "few")
    assert num_decoded < 40


def test_a_frame_that_is_not_sure_is_decoded_from_the_start(encode, monkeypatch) -> None:
    path = encode("a.mp4", 60, g="20", bf="3")
    expected = _sequential(path, [0.2, 1.0, 2.0])
    monkeypatch.setattr(sparse, "bisect_right", lambda times_s, limit_s: len(times_s))  # a later frame is expected
    with Video(str(path), LIMIT) as video, pytest.raises(sparse.NotExactError):
        list(sparse.frames(video, [0.2, 1.0]))
    _assert_same(_pictures(path, [0.2, 1.0, 2.0]), expected, "not sure")


def test_what_cannot_be_opened(tmp_path: Path, encode) -> None:
    path = encode("a.mp4", 10)
    for content in (b"no video", path.read_bytes()[:400]):
        bad = tmp_path / "bad.mp4"
        bad.write_bytes(content)
        with pytest.raises(RowError) as caught:
            _pictures(bad, [0.0])
        assert caught.value.columns["reject_reason"] == "corrupt"
