"""Split videos into clips and score them: one sequential decode per file -> one row per clip.

Emu3 2.1 and A.1: PySceneDetect's ContentDetector (threshold 27) and ThresholdDetector (12, fades) find the scenes, and
flow is measured at 2 FPS. Here one decoding pass feeds all of it: every frame is shrunk to a shorter edge of 144 px
(256 x 144 for 16:9, the size at which PySceneDetect itself works) for cuts and flicker, and only the frames sampled at
2 FPS to 256 px for the scores.
"""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from pydantic import Field
from scenedetect.common import FrameTimecode
from scenedetect.detectors import ContentDetector, ThresholdDetector

from stages.columns import MEDIA
from stages.rows import RowError, pick, replace, values_of
from stages.samples import Sample, Sampler
from stages.video import BrokenVideoError, Video
from tokenizer.identity import Config, clip_id

_SCAN_PX = 144
_ANY_FPS = 25.0  # the detectors get frame numbers as time, and count frames only
_MAX_MISSING_S = 1.0  # headers are wrong by less than this without a frame missing
_MAX_MISSING_SHARE = 0.05


class SplitVideosConfig(Config):
    """How scenes are found and clips are scored."""

    cut_threshold: float = Field(
        default=27.0,
        gt=0,
        description="too small: motion becomes cuts; too large: scenes run into each other (Emu3: 27)",
    )
    fade_threshold: int = Field(
        default=12,
        ge=0,
        le=255,
        description="too small: dark fades are no scene ends; too large: dark scenes fall apart (Emu3: 12)",
    )
    min_scene_frames: int = Field(
        default=15, ge=0, description="too small: flashes become scenes; too large: fast cutting runs into one scene"
    )
    max_clip_s: float = Field(
        default=20.0,
        gt=0,
        description="too small: actions are torn apart; too large: clips no longer fit into a sequence",
    )
    score_fps: float = Field(
        default=2.0,
        gt=0,
        description="too small: motion between samples is missed; too large: scoring costs more than decoding",
    )
    max_pixels: int = Field(
        default=8192 * 4320,
        gt=0,
        description="too small: large videos are rejected; too large: one fills the worker's memory",
    )
    max_duration_s: float = Field(
        default=4 * 3600.0,
        gt=0,
        description="too small: the rest of long videos is rejected; too large: one file holds a worker",
    )


@dataclass
class _Scan:
    """What one pass over a video leaves: a number or two per frame, a record per sample, no pixels."""

    times_s: list[float] = field(default_factory=list)
    lumas: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    content_cuts: list[int] = field(default_factory=list)
    fade_cuts: list[int] = field(default_factory=list)
    last_frame_s: float = 0.0  # how long the last frame is shown, by the container
    ended: RowError | None = None  # why it ended before the file did


class SplitVideos:
    """Videos with `path` -> one row per clip [start_s, end_s), with its scores. A temporary file is deleted.

    Nothing disappears: scenes longer than max_clip_s are split evenly, short ones stay as short rows, and what cannot
    be decoded is one more row for the remaining span, rejected as broken_tail (the clips before it are kept) or
    too_long. Costs one decode per file: 600 to 700 frames per second and core at 640 x 360. Files rejected as a whole:
    corrupt, no_video_stream, unsupported_codec, no_frames, too_many_pixels. Rows of other kinds pass through.
    """

    reads = pa.schema(
        [
            *pick(MEDIA, "kind", "file_id", "reject_reason", "reject_detail"),
            pa.field("path", pa.string()),
            pa.field("path_is_temporary", pa.bool_()),
        ]
    )
    writes = pick(
        MEDIA,
        *("media_id", "start_s", "end_s", "width_px", "height_px", "fps", "duration_s", "num_frames", "format"),
        *("aspect", "sharpness", "luminance", "contrast", "colourfulness", "phash", "flow", "flicker"),
        *("reject_reason", "reject_detail"),
    )
    drops = ("path", "path_is_temporary")
    rows = "more"

    def __init__(self, config: SplitVideosConfig):
        self._config = config
        cv2.setNumThreads(1)  # one worker is one core; OpenCV would take them all

    def __call__(self, table: pa.Table) -> pa.Table:
        before = values_of(table, self.writes)
        values: dict[str, list] = {name: [] for name in self.writes.names}
        origins: list[int] = []
        for i, row in enumerate(table.select(self.reads.names).to_pylist()):
            if row["kind"] == "video" and row["reject_reason"] is None:
                known = {"media_id": row["file_id"], "format": before["format"][i]}
                found = self._rows_of(row["file_id"], row["path"], row["path_is_temporary"])
            else:
                known, found = {name: before[name][i] for name in self.writes.names}, [{}]
            for clip in found:
                origins.append(i)
                for name in self.writes.names:
                    values[name].append(clip[name] if name in clip else known.get(name))
        return replace(table.take(pa.array(origins, pa.int64())), self.writes, values, self.drops)

    def _rows_of(self, file_id: str, path: str, is_temporary: bool) -> list[dict[str, Any]]:
        try:
            with Video(path, self._config.max_pixels) as video:
                return self._clips(file_id, video, self._scan(video))
        except RowError as rejected:
            return [rejected.columns]
        finally:
            if is_temporary:
                os.unlink(path)

    def _scan(self, video: Video) -> _Scan:
        content = ContentDetector(self._config.cut_threshold, self._config.min_scene_frames)
        fades = ThresholdDetector(self._config.fade_threshold, self._config.min_scene_frames)
        scan, sampler = _Scan(), Sampler(video, self._config.score_fps)
        to_scan_size = video.shrinker(_SCAN_PX)
        try:
            for time_s, frame in video.frames():
                if time_s >= self._config.max_duration_s:
                    scan.ended = RowError("too_long", f"not read beyond {self._config.max_duration_s:g} s")
                    break
                small = to_scan_size(frame)
                number = FrameTimecode(len(scan.times_s), _ANY_FPS)
                cuts = content.process_frame(number, small)
                scan.content_cuts += [cut.frame_num for cut in cuts]
                scan.fade_cuts += [cut.frame_num for cut in fades.process_frame(number, small)]
                scan.times_s.append(time_s)
                scan.last_frame_s = video.shown_s(frame)
                scan.lumas.append(cv2.mean(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY))[0])
                scan.samples += sampler.take(time_s, frame, is_cut=bool(cuts))
        except BrokenVideoError as broken:
            scan.ended = RowError("broken_tail", str(broken))
        if not scan.times_s:
            reason = "no frame decodes" if scan.ended is None else scan.ended.columns["reject_detail"]
            raise RowError("no_frames", reason, format=video.codec)
        return scan

    def _clips(self, file_id: str, video: Video, scan: _Scan) -> list[dict[str, Any]]:
        times_s = np.array(scan.times_s)
        interval_s = float(np.median(np.diff(times_s))) if len(times_s) > 1 else video.interval_s
        end_s = round(float(times_s[-1]) + interval_s, 6)
        last_s = round(float(times_s[-1]) + scan.last_frame_s, 6)
        if video.declared_s is not None and end_s < last_s <= video.declared_s + interval_s:
            end_s = last_s  # a slide show ends on a long frame
        shared = {
            "width_px": video.width_px,
            "height_px": video.height_px,
            "fps": (len(times_s) - 1) / float(times_s[-1]) if len(times_s) > 1 else None,
            "format": video.codec,
            "aspect": max(video.width_px, video.height_px) / min(video.width_px, video.height_px),
        }
        bounds = list(self._bounds(scan, np.append(times_s, end_s)))
        clips = []
        for first, last in zip(bounds, [*bounds[1:], len(times_s)], strict=True):
            start, end = float(times_s[first]), float(times_s[last]) if last < len(times_s) else end_s
            clips.append({**shared, **_span(file_id, start, end), "num_frames": last - first})
            clips[-1].update(_clip_scores(scan, first, last, start, end))
        missing_s = 0.0 if video.declared_s is None else video.declared_s - end_s
        if scan.ended is None and missing_s > max(_MAX_MISSING_S, _MAX_MISSING_SHARE * end_s):
            scan.ended = RowError("broken_tail", f"frames end at {end_s:.3f} s of {video.declared_s:.3f} s")
        if scan.ended is not None:
            rest_s = end_s + missing_s if missing_s > 0 else None
            clips.append({**shared, **_span(file_id, end_s, rest_s), **scan.ended.columns})
        return clips

    def _bounds(self, scan: _Scan, edges_s: np.ndarray) -> Iterator[int]:
        """First frames of the clips. Long scenes are cut evenly, at the first frame at or after each even point."""
        near = self._config.min_scene_frames
        cuts = sorted({0, *scan.content_cuts})
        # A fade that is also a cut is one scene end.
        fades = {fade for fade in scan.fade_cuts if bisect_left(cuts, fade + near) == bisect_right(cuts, fade - near)}
        scenes = sorted(fades.union(cuts))
        for first, last in zip(scenes, [*scenes[1:], len(edges_s) - 1], strict=True):
            num_parts = int(np.ceil((edges_s[last] - edges_s[first]) / self._config.max_clip_s - 1e-6))
            points = np.linspace(edges_s[first], edges_s[last], max(1, num_parts), endpoint=False)
            starts = np.unique(np.searchsorted(edges_s, points - 1e-6))
            yield from starts[starts < last].tolist()  # a gap in time can hold several even points, and no frame


def _first_at(samples: list[Sample], time_s: float) -> int:
    return bisect_left(samples, time_s, key=lambda sample: sample.time_s)


def _span(file_id: str, start_s: float, end_s: float | None) -> dict[str, Any]:
    return {
        "media_id": clip_id(file_id, start_s, start_s if end_s is None else end_s),
        "start_s": start_s,
        "end_s": end_s,
        "duration_s": None if end_s is None else round(end_s - start_s, 6),
    }


def _clip_scores(scan: _Scan, first: int, last: int, start_s: float, end_s: float) -> dict[str, Any]:
    lumas = scan.lumas[first:last]
    found: dict[str, Any] = {"flicker": float(np.abs(np.diff(lumas)).mean()) if len(lumas) > 1 else None}
    samples = scan.samples[_first_at(scan.samples, start_s) : _first_at(scan.samples, end_s)]
    if not samples:
        return found
    for name in ("sharpness", "luminance", "contrast", "colourfulness"):
        found[name] = float(np.mean([getattr(sample.scores, name) for sample in samples]))
    found["phash"] = samples[len(samples) // 2].scores.phash
    flows = [sample.flow for sample in samples[1:] if sample.flow is not None]
    found["flow"] = float(np.mean(flows)) if flows else None
    return found
