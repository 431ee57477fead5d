"""A few frames of a video by PyAV, without decoding what none of them needs.

Packets are read in chunks, mostly a key frame with all up to the next: their presentation times tell which frames will
be shown at the chosen times before one is decoded. Groups without such a frame are not decoded; after the last one of a
group the decoder stops; long gaps are sought over where seeks are exact. Of H.264 and HEVC the decoder leaves out, too,
what no other picture refers to, about half of the pictures of most encoders: what is left is bit for bit the same.
Every frame is checked against the packets' times; where they do not agree, `NotExactError` says so. Damage in what is
left out goes unseen.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from math import inf

import av
from av.packet import Packet
from av.video.frame import VideoFrame

from tokenmill.stages.video.decode import BrokenVideoError, Video

_TRUE_TIMES = ("mov,", "matroska,", "mpegts", "flv", "ogg")  # containers that store presentation times
_SEEK_GAP_S = 5.0  # reading packets on is cheaper than a seek, which may have to be repeated
_SEEK_BACK_S = (0.0, 4.0)  # indexes count decoding times, which run ahead of presentation by some frames
_CHUNK_PACKETS, _CHUNK_BYTES = 512, 64_000_000  # of groups longer than that, a part at a time
_SLICE, _IDR = 1, 5  # H.264's types of units
_TimedPacket = tuple[float, Packet]


class NotExactError(Exception):
    """Another frame, or none, may be the one that a sequential pass shows."""


def frames(video: Video, limits_s: list[float]) -> Iterator[VideoFrame]:
    """The last frame that starts at or before each of `limits_s`, which rise. `video` is fresh. Raises `NotExactError`
    in place of a frame that is not sure."""
    if not video.container.startswith(_TRUE_TIMES):
        raise NotExactError
    yield from _Sparse(video, limits_s).frames()


def _skips_exactly(video: Video) -> bool:
    """Whether the decoder knows what no picture refers to: HEVC marks only what its own temporal layer does not need,
    so there must be one layer (ISO 14496-15, 8.3.3.1.2)."""
    if video.codec == "hevc":
        record = video.stream.codec_context.extradata or b""
        return len(record) > 22 and record[0] == 1 and record[21] >> 3 & 7 == 1
    return video.codec == "h264"


def _begins_anew(packet: Packet, codec: str) -> bool:
    """Whether what follows needs nothing before this key frame. Of H.264, containers call key frames also pictures from
    which a refresh in stripes begins: of these the decoder gives what is not whole yet, so only IDR pictures count."""
    if not packet.is_keyframe or codec != "h264":
        return packet.is_keyframe
    record = packet.stream.codec_context.extradata or b"" if packet.stream else b""
    content = bytes(packet)
    at, size = 0, record[4] % 4 + 1 if len(record) > 4 and record[0] == 1 else 0  # bytes of the units' lengths
    while True:
        found = at + size if size else content.find(b"\0\0\1", at) + 3
        if found >= len(content) or (not size and found == 2):
            return False
        if content[found] & 31 in (_SLICE, _IDR):
            return content[found] & 31 == _IDR
        at = found + int.from_bytes(content[at:found], "big") if size else found


@dataclass
class _Chunk:
    packets: list[_TimedPacket]  # (presentation time, packet) in decoding order
    key_s: float = -inf  # when the key frame that it begins with is shown; -inf when it begins between key frames
    next_key_s: float = inf  # when the key frame that ended it is shown
    is_cut: bool = False  # it was full before


class _Sparse:
    def __init__(self, video: Video, limits_s: list[float]):
        self._video, self._limits_s = video, limits_s
        self._packets: Iterator[Packet] = video.packets()
        self._starts_s = [0.0] * len(limits_s)  # what the packets say of the frame of each limit
        self._can_skip, self._skips = _skips_exactly(video), False

    def frames(self) -> Iterator[VideoFrame]:
        held: tuple[float, VideoFrame] | None = None
        num_shown = 0
        try:
            for timed in chain(self._video.first_and_those_of(self._feed()), [None]):
                while held is not None and num_shown < len(self._limits_s):
                    if timed is not None and timed[0] <= self._limits_s[num_shown]:
                        break
                    if held[0] < self._starts_s[num_shown]:
                        raise NotExactError
                    yield held[1]
                    num_shown += 1
                if num_shown == len(self._limits_s):
                    return
                held = timed
        except BrokenVideoError as error:
            raise NotExactError from error

    def _feed(self) -> Iterator[Packet]:
        """Packets for the decoder, which are needed or cost nothing; at gaps, what empties it."""
        tail: list[_TimedPacket] = []  # of the group that is being decoded: needed if pictures of the next refer to it
        is_drained = False
        for chunk in self._chunks():
            wanted_s = self._wanted(chunk)
            if not wanted_s and not chunk.is_cut:
                if not is_drained:
                    yield from self._drain()
                tail, is_drained = [], True
                later_s = [limit_s for limit_s in self._limits_s if limit_s >= chunk.next_key_s]
                if not later_s:
                    return
                if later_s[0] - chunk.next_key_s > _SEEK_GAP_S and self._video.is_seekable:
                    self._seek(later_s[0])
                continue
            if chunk.is_cut and self._video.is_seekable and self._is_far(chunk):
                raise NotExactError
            if tail and min(wanted_s, default=-inf) >= chunk.key_s > -inf:
                yield from self._drain()
            else:
                yield from self._give(tail, set())
            last = max((i for i, (time_s, _) in enumerate(chunk.packets) if time_s in wanted_s), default=-1)
            end = len(chunk.packets) if chunk.is_cut else last + 1
            yield from self._give(chunk.packets[:end], wanted_s)
            tail, is_drained = chunk.packets[end:], False
        yield self._empty()

    def _is_far(self, chunk: _Chunk) -> bool:
        """Whether a frame is wanted so long after a part of a group that `frame_at`, which seeks to key frames of any
        kind, is better at it than decoding on."""
        ends_s = max(time_s for time_s, _ in chunk.packets)
        later_s = [limit_s for limit_s in self._limits_s if limit_s > ends_s]
        has_other_keys = any(packet.is_keyframe for _, packet in chunk.packets[1:])
        return has_other_keys and bool(later_s) and later_s[0] - ends_s > _SEEK_GAP_S

    def _chunks(self) -> Iterator[_Chunk]:
        chunk, num_bytes = _Chunk([]), 0
        while (timed := self._next()) is not None:
            packet = timed[1]
            is_key = _begins_anew(packet, self._video.codec)
            is_full = len(chunk.packets) == _CHUNK_PACKETS or num_bytes > _CHUNK_BYTES
            if chunk.packets and (is_key or is_full):
                chunk.next_key_s, chunk.is_cut = (timed[0], False) if is_key else (inf, True)
                packets = self._packets
                yield chunk
                chunk, num_bytes = _Chunk([]), 0
                if packets is not self._packets:  # sought
                    continue
            if is_key:
                chunk.key_s = timed[0]
            chunk.packets.append(timed)
            num_bytes += packet.size
        if chunk.packets:
            yield chunk

    def _next(self) -> _TimedPacket | None:
        try:
            packet = next(self._packets, None)
        except av.FFmpegError as error:
            raise NotExactError from error
        if packet is None or (packet.pts is None and packet.size == 0):
            return None
        if packet.pts is None:
            raise NotExactError
        return self._video.time_s(packet.pts), packet

    def _wanted(self, chunk: _Chunk) -> set[float]:
        """Times of the chunk's frames that are shown at a limit, as far as is known."""
        times_s = sorted(time_s for time_s, packet in chunk.packets if not packet.is_discard)
        wanted_s = set()
        for i, limit_s in enumerate(self._limits_s):
            if chunk.next_key_s <= limit_s:
                self._starts_s[i] = max(self._starts_s[i], chunk.next_key_s)
                continue
            at = bisect_right(times_s, limit_s)
            if at and times_s[at - 1] >= self._starts_s[i]:
                self._starts_s[i] = times_s[at - 1]
                wanted_s.add(times_s[at - 1])
        return wanted_s

    def _seek(self, limit_s: float) -> None:
        for back_s in _SEEK_BACK_S:
            try:
                self._video.seek(limit_s - back_s)
            except av.FFmpegError as error:
                raise NotExactError from error
            self._packets = self._video.packets()
            first = self._next()
            if first is not None and first[0] <= limit_s and _begins_anew(first[1], self._video.codec):
                self._packets = chain([first[1]], self._packets)
                return
        raise NotExactError

    def _give(self, packets: Iterable[_TimedPacket], wanted_s: set[float]) -> Iterator[Packet]:
        for time_s, packet in packets:
            self._skip(self._can_skip and time_s not in wanted_s)
            yield packet

    def _skip(self, skips: bool) -> None:
        if skips is not self._skips:
            self._video.stream.codec_context.skip_frame = "NONREF" if skips else "DEFAULT"
            self._skips = skips

    def _drain(self) -> Iterator[Packet]:
        yield self._empty()
        self._video.flush()

    def _empty(self) -> Packet:
        """What makes the decoder give all that it holds."""
        packet = Packet()
        packet.stream = self._video.stream
        return packet
