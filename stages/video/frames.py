"""A few frames out of a video, each the very one that a sequential pass shows at that time, by the quickest way there.

    sparse   PyAV decodes only what these frames need (sparse.py): containers that store presentation times
    decord   one long group of pictures that all refer to one another: H.264 of 8 bits in MP4, no edit list, upright
    pyav     `Video.frame_at`: whatever is left, and where one of the others is not sure of a frame

decord2 3.4.0 gives wrong frames of files with edit lists, of 10 bits and of MPEG-PS, and fails on some; it decodes
every picture from a key frame on, which PyAV need not. So it is asked only where there is nothing for PyAV to leave out
and both take as long within 7 % of CPU time; its first picture is compared with PyAV's, bit by bit, and its times with
the container's.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from av.video.frame import VideoFrame

from tokenmill.stages.video import sparse
from tokenmill.stages.video.decode import TICK_S, Video

_FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuv444p")
_LONG_GROUP = 100  # frames
_SAME_S = 0.001  # decord keeps times in single precision
_WORTH_PIXELS = 100_000_000  # in all frames; below, opening the file a second time is more than a fiftieth of the time

_Reader = Callable[[Video, list[float]], Iterator[VideoFrame]]


def frames_at(source: Video, times_s: Sequence[float]) -> Iterator[VideoFrame]:
    """The stored frame that a player shows at each of `times_s`, in their order: what `Video.frame_at` gives. Times may
    repeat; before the first frame they mean the first, after the last the last. One frame at a time is in memory where
    the times rise, else all."""
    order = np.argsort(times_s, kind="stable").tolist()
    rising = _rising(source, [max(0.0, times_s[i]) for i in order])
    if order == list(range(len(order))):
        return rising
    shown = dict(zip(order, rising, strict=True))
    return (shown[i] for i in range(len(order)))


def reader(video: Video, last_s: float) -> Literal["decord", "sparse"]:
    """What is asked first for frames of a fresh Video up to `last_s`, by what its container says."""
    stream, first = video.stream, video.first
    is_plain = video.container.startswith("mov,") and video.codec == "h264" and first.format.name in _FORMATS
    is_upright = video.quarter_turns == 0 and first.rotation == 0
    if not is_plain or not is_upright or stream.codec_context.has_b_frames or first.pts != 0:
        return "sparse"
    num_frames = min(stream.frames, last_s / video.interval_s)
    if num_frames < _LONG_GROUP or num_frames * first.width * first.height < _WORTH_PIXELS:
        return "sparse"
    entries = list(stream.index_entries)  # an edit list leaves some out, or marks them
    is_one_group = sum(entry.is_keyframe for entry in entries) == 1 and not any(entry.is_discard for entry in entries)
    return "decord" if is_one_group and len(entries) == stream.frames else "sparse"


def _rising(video: Video, times_s: list[float]) -> Iterator[VideoFrame]:
    if not times_s:
        return
    limits_s = [time_s + TICK_S for time_s in times_s]
    video.rewind()
    ways: list[tuple[_Reader, type[Exception]]] = [(sparse.frames, sparse.NotExactError)]
    if reader(video, times_s[-1]) == "decord":
        ways.insert(
            0, (_by_decord, Exception)
        )  # its own, RuntimeError, AssertionError and others: PyAV judges the file
    num_shown = 0
    for read, errors in ways:
        try:
            for frame in read(video, limits_s[num_shown:]):
                yield frame
                num_shown += 1
            return
        except errors:
            video.rewind()
    for time_s in times_s[num_shown:]:
        yield video.frame_at(time_s)


def _by_decord(video: Video, limits_s: list[float]) -> Iterator[VideoFrame]:
    import decord  # a third of a second, and few files ask for it

    decord.logging.set_level(decord.logging.QUIET)
    ticks = [entry.timestamp for entry in video.stream.index_entries]  # of decoding, and nothing is reordered
    starts_s = np.array([video.time_s(tick) for tick in ticks])
    file = decord.VideoReader(video.path, num_threads=1)
    found_s = file.get_frame_timestamp(np.arange(len(file)))[:, 0]
    if len(file) != len(ticks) or np.any(np.diff(starts_s) <= 0) or np.abs(found_s - starts_s).max() > _SAME_S:
        raise sparse.NotExactError
    if not np.array_equal(file[0].asnumpy(), video.upright(video.first)):
        raise sparse.NotExactError
    shown, frame = 0, video.first
    for number in (np.searchsorted(starts_s, limits_s, "right") - 1).tolist():
        if number != shown:
            frame = VideoFrame.from_ndarray(file[number].asnumpy(), format="rgb24")
            frame.pts, frame.time_base, shown = ticks[number], video.stream.time_base, number
        yield frame
