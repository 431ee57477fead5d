"""A video file as frames with presentation times: in one sequential pass, or at chosen times.

Times are the file's own presentation times in seconds from its first frame, rounded to the microsecond, so that
variable frame rates and wrong headers do not matter: finding a clip and loading it agree on every frame.
Rotation and non-square pixels are those of the first frame. PyAV decodes, on one thread (a worker is one core). Frames
at chosen times come from a seek to the key frame before them in MP4 and Matroska, where that is exact; other containers
are decoded from their start. Checked against full sequential passes of 22 real files: no frame was wrong. A few frames
out of many come quicker from frames.py.
"""

import math
from collections.abc import Iterator
from fractions import Fraction

import av
import cv2
import numpy as np
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter

from tokenmill.stages.table.rows import RowError, words

_EXACT_SEEK = ("mov,", "matroska,")  # containers with an index of key frames
_SEEK_GAP_S = 5.0  # decoding on is cheaper than a seek, which decodes half a group of pictures for nothing
_SEEK_BACK_S = (0.0, 4.0)  # indexes count decoding times, which run ahead of presentation by some frames
TICK_S = 1e-6  # times this close are the same
_MAX_GLITCH_S = 1.0


class BrokenVideoError(Exception):
    """The video ends here: its decoder failed, or its time ran backwards. The message says which."""


class Video:
    """An open video. Raises `RowError`: corrupt, no_video_stream, unsupported_codec, too_many_pixels, no_frames.

    `path` is the file's, `stream` PyAV's, `container` and `codec` are names; `width_px`, `height_px` are as shown;
    `quarter_turns` counter-clockwise bring a stored frame upright; `is_seekable` says that seeks are exact;
    `interval_s` is the nominal time between frames and `declared_s` the duration that the header claims (null when it
    claims none). Use as a context manager.
    """

    def __init__(self, path: str, max_pixels: int):
        self.path, self._max_pixels = path, max_pixels
        self._first_pts: int | None = None
        self._reformatter = VideoReformatter()  # keeps its scaler between frames of one size
        self._error = "no packet of the video stream decodes"
        self._open()
        if self._ahead is None:
            self.close()
            raise RowError("no_frames", self._error, format=self.codec)
        frame = self._ahead[1]
        pixel_aspect = float(self.stream.sample_aspect_ratio or 1)
        self._stored_px = (round(frame.width * (pixel_aspect if 0.1 < pixel_aspect < 10 else 1)), frame.height)
        self.quarter_turns = round(frame.rotation / 90) % 4
        self.width_px, self.height_px = self._stored_px[:: -1 if self.quarter_turns % 2 else 1]

    def _open(self) -> None:
        try:
            # Only local files: a crafted container must not make the decoder fetch addresses.
            self._container = av.open(self.path, options={"protocol_whitelist": "file"}, metadata_errors="replace")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise RowError("corrupt", words(error)) from error
        try:
            self.stream = self._video_stream()
        except RowError:
            self._container.close()
            raise
        self._is_fresh, self._is_partial = True, False
        self._restart()

    def _restart(self) -> None:
        self._packets = self.packets()
        self._last_s: float | None = None
        self._frames = self._decode()
        self._held: tuple[float, VideoFrame] | None = None
        self._ahead = self._advance()

    @property
    def first(self) -> VideoFrame:
        """The first frame, as stored; of a fresh Video."""
        assert self._ahead is not None and self._is_fresh
        return self._ahead[1]

    def rewind(self) -> None:
        """Back to the first frame, unless still there."""
        if not self._is_fresh:
            self.close()
            self._open()

    def _video_stream(self) -> av.VideoStream:
        stream = self._container.streams.best("video")
        if not isinstance(stream, av.VideoStream) or stream.disposition & Disposition.attached_pic:
            raise RowError("no_video_stream", f"{len(self._container.streams)} streams, none of them video")
        context = stream.codec_context
        if not isinstance(context, av.VideoCodecContext):
            raise RowError("unsupported_codec", "no decoder for the video stream")
        self.codec: str = context.codec.canonical_name
        if context.width * context.height > self._max_pixels:
            size = f"{context.width} x {context.height} px; the limit is {self._max_pixels} px"
            raise RowError("too_many_pixels", size, format=self.codec, width_px=context.width, height_px=context.height)
        context.options = {"max_pixels": str(self._max_pixels)}
        context.thread_count = 1
        rate = float(stream.average_rate or 0)
        self.interval_s = 1 / rate if 1 <= rate <= 240 else 0.04  # some headers say 1,000 per second
        self._time_base = stream.time_base or Fraction(1, 90_000)
        self._ticks = self._time_base.as_integer_ratio()
        self.declared_s = self._declared_s(stream)
        self.container = self._container.format.name
        self.is_seekable = self.container.startswith(_EXACT_SEEK)
        return stream

    def _declared_s(self, stream: av.VideoStream) -> float | None:
        if stream.duration:
            return float(stream.duration * self._time_base)
        if self._container.duration and len(self._container.streams) == 1:  # else it may be that of the sound
            return self._container.duration / av.time_base
        return None

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _decode(self) -> Iterator[tuple[float, VideoFrame]]:
        """(time_s, frame) from where the container stands. Damage before the first good frame is skipped (a recording
        may start between key frames); damage after it raises `BrokenVideoError`."""
        while True:
            try:
                packet = next(self._packets, None)
                frames = [] if packet is None else packet.decode()
            except MemoryError:  # one of FFmpeg's errors, and no damage
                raise
            except av.FFmpegError as error:
                self._error = words(error)
                if self._last_s is None:
                    continue
                raise BrokenVideoError(self._error) from error
            if packet is None:
                return
            for frame in frames:
                if frame.is_corrupt:
                    if self._last_s is None:
                        continue
                    raise BrokenVideoError("the decoder marks a picture as damaged")
                time_s = self._time_s(frame, self._last_s)
                if self._last_s is not None and time_s <= self._last_s:
                    if self._last_s - time_s > _MAX_GLITCH_S:
                        jump = f"from {self._last_s:.3f} s to {time_s:.3f} s"
                        raise BrokenVideoError(f"presentation time jumps back {jump}")
                    continue  # no player would show it
                self._last_s = time_s
                yield time_s, frame

    def _time_s(self, frame: VideoFrame, last_s: float | None) -> float:
        if frame.pts is None:
            return 0.0 if last_s is None else round(last_s + self.interval_s, 6)
        if self._first_pts is None:
            self._first_pts = frame.pts
        return self.time_s(frame.pts)

    def time_s(self, pts: int) -> float:
        """Seconds from the first frame of a presentation time in the stream's ticks."""
        ticks, per_s = self._ticks
        return round((pts - (self._first_pts or 0)) * ticks / per_s, 6)

    def frames(self) -> Iterator[tuple[float, VideoFrame]]:
        """Every (time_s, frame) from the start, times rising; once, on a fresh Video. Raises `BrokenVideoError`."""
        assert self._ahead is not None and self._is_fresh
        self._is_fresh = False
        yield self._ahead
        yield from self._frames

    def packets(self) -> Iterator[Packet]:
        """Packets of the stream from where the container stands, and at its end an empty one, which drains."""
        return self._container.demux(self.stream)

    def first_and_those_of(self, packets: Iterator[Packet]) -> Iterator[tuple[float, VideoFrame]]:
        """The first frame and then, as `frames` does, those of `packets`, which may leave out some of the file's; on a
        fresh Video. Afterwards `frame_at` begins anew."""
        self._packets, self._is_partial = packets, True
        yield from self.frames()

    def flush(self) -> None:
        """Forget what was decoded: the next packet is a key frame elsewhere."""
        self.stream.codec_context.flush_buffers()
        self._last_s = None

    def seek(self, time_s: float) -> None:
        """To a key frame, mostly one before `time_s`. Raises FFmpegError."""
        target = (self._first_pts or 0) + math.floor(time_s / self._time_base)
        self._container.seek(target, stream=self.stream)

    def frame_at(self, time_s: float) -> VideoFrame:
        """The stored frame that a player shows at `time_s`: the last one that starts at or before it."""
        if self._is_partial:
            self.rewind()
        limit_s, self._is_fresh = time_s + TICK_S, False
        far = self._ahead is not None and self._ahead[0] + _SEEK_GAP_S < time_s
        if (self._held is not None and limit_s < self._held[0]) or (far and self.is_seekable):
            self._go_to(limit_s)
        while self._ahead is not None and self._ahead[0] <= limit_s:
            self._held, self._ahead = self._ahead, self._advance()
        assert self._held is not None
        return self._held[1]

    def shown_s(self, frame: VideoFrame) -> float:
        """How long the container says that `frame` is shown; 0 when it does not say."""
        return float((frame.duration or 0) * self._time_base)

    def upright(self, frame: VideoFrame) -> np.ndarray:
        """uint8 (H, W, 3) RGB of a stored frame at its stored size, turned as shown. Raises `RowError`: corrupt."""
        try:
            rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
            return np.rot90(rgb.to_ndarray(), self.quarter_turns)
        except (av.FFmpegError, ValueError) as error:  # pixels in a form that no scaler takes
            raise RowError("corrupt", words(error)) from error

    def shrinker(self, shorter_px: int, is_coarse: bool = False) -> "Shrinker":
        """A converter of this video's frames to small pictures."""
        return Shrinker(self._stored_px, shorter_px, is_coarse)

    def _advance(self) -> tuple[float, VideoFrame] | None:
        try:
            return next(self._frames, None)
        except BrokenVideoError:
            return None

    def _go_to(self, limit_s: float) -> None:
        for back_s in _SEEK_BACK_S if self.is_seekable else ():
            target_s = limit_s - back_s
            if target_s <= 0 or self._first_pts is None:
                break
            try:
                self.seek(target_s)
            except av.FFmpegError:
                break
            self._restart()
            if self._ahead is not None and self._ahead[0] <= limit_s:
                return
        self.close()
        self._open()


class Shrinker:
    """Stored frames -> uint8 (h, w, 3) BGR with a shorter edge of at most `shorter_px` and even sides; not turned.

    Works on the decoder's own planes where these are the usual ones (8-bit 4:2:0, studio range), in a quarter of the
    time of FFmpeg's scaler, which takes all others. A coarse one interpolates without averaging before.
    """

    def __init__(self, stored_px: tuple[int, int], shorter_px: int, is_coarse: bool):
        scale = min(1.0, shorter_px / min(stored_px))
        self._width, self._height = (max(2, round(side * scale / 2) * 2) for side in stored_px)
        self._factor = 1 if is_coarse else max(1, int(1 / scale))
        self._interpolation = "FAST_BILINEAR" if is_coarse else "AREA"
        self._reformatter = VideoReformatter()  # keeps its scaler between frames of one size
        self._planar = np.empty((self._height * 3 // 2, self._width), np.uint8)
        chroma = self._planar[self._height :].reshape(2, self._height // 2, self._width // 2)
        self._planes = (self._planar[: self._height], chroma[0], chroma[1])

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """Raises `BrokenVideoError` when the frame's pixels are in a form that no scaler takes."""
        if frame.format.name != "yuv420p" or frame.color_range == ColorRange.JPEG:
            return self._scaled(frame)
        factor = self._factor
        for plane, small in zip(frame.planes, self._planes, strict=True):
            content = np.frombuffer(plane, np.uint8)  # type: ignore[call-overload]
            stored = content.reshape(-1, plane.line_size)[: plane.height, : plane.width]
            if factor > 1:
                size = max(1, plane.width // factor), max(1, plane.height // factor)
                stored = cv2.resize(stored[: size[1] * factor, : size[0] * factor], size, interpolation=cv2.INTER_AREA)
            cv2.resize(stored, small.shape[::-1], dst=small, interpolation=cv2.INTER_LINEAR)
        return cv2.cvtColor(self._planar, cv2.COLOR_YUV2BGR_I420)

    def _scaled(self, frame: VideoFrame) -> np.ndarray:
        try:
            small = self._reformatter.reformat(
                frame,
                width=self._width,
                height=self._height,
                format="bgr24",
                interpolation=self._interpolation,
                threads=1,
            )
        except (av.FFmpegError, ValueError) as error:
            raise BrokenVideoError(words(error)) from error
        return small.to_ndarray()
