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
from scenedetect.detector import FlashFilter
from scenedetect.detectors import ThresholdDetector

from tokenmill.stages.image.measures import PictureScores
from tokenmill.stages.image.text_area import TextConfig, TextDetector
from tokenmill.stages.image.views import make_view
from tokenmill.stages.select.expensive import Lazy, add_scored
from tokenmill.stages.table import limits
from tokenmill.stages.table.columns import MEDIA
from tokenmill.stages.table.rows import RowError, pick, replace, values_of
from tokenmill.stages.video.decode import BrokenVideoError, Video
from tokenmill.stages.video.samples import Kept, Sample, Sampler
from tokenmill.storage.identity import Config, clip_id

_SCAN_PX = 144
_ANY_FPS = 25.0  # the detectors get frame numbers as time, and count frames only
_MAX_MISSING_S = 1.0  # headers are wrong by less than this without a frame missing
_MAX_MISSING_SHARE = 0.05
_VARIABLE_RATIO = 1.5
_NUM_VIEWS = 3  # Emu3 2.1: aesthetics of three frames
_MEANS = tuple(name for name in PictureScores._fields if name != "phash")  # over a clip's samples


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


class Cuts:
    """PySceneDetect's ContentDetector with its score in two passes over a frame instead of a dozen: the same numbers.

    Frames below the threshold never reach the detector's filter of flashes, unless that waits for one.
    """

    def __init__(self, threshold: float, min_scene_frames: int):
        self._threshold = threshold
        self._filter = FlashFilter(FlashFilter.Mode.MERGE, min_scene_frames)
        self._before: np.ndarray | None = None

    def at(self, number: int, bgr: np.ndarray) -> list[int]:
        """Frame numbers at which scenes begin, found with frame `number`, uint8 (h, w, 3); numbers rise from 0."""
        hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
        score = 0.0 if self._before is None else cv2.norm(hsv, self._before, cv2.NORM_L1) / hsv.size
        self._before = hsv
        is_cut = score >= self._threshold
        if number and not is_cut and not self._filter._merge_triggered:
            return []
        return [cut.frame_num for cut in self._filter.filter(_timecode(number), is_cut)]


class Fades:
    """PySceneDetect's ThresholdDetector, which is asked only where a video turns dark or bright again."""

    def __init__(self, threshold: int, min_scene_frames: int):
        self._threshold = threshold
        self._detector = ThresholdDetector(threshold, min_scene_frames)
        self._was_dark: bool | None = None

    def at(self, number: int, mean: float) -> list[int]:
        """Frame numbers at which scenes begin, found with frame `number` and the mean of its pixels, 0..255."""
        is_dark, was_dark = mean < self._threshold, self._was_dark
        self._was_dark = is_dark
        if is_dark == was_dark:
            return []
        return [cut.frame_num for cut in self._detector.process_frame(_timecode(number), np.array([mean]))]


def _timecode(number: int) -> FrameTimecode:
    return FrameTimecode(number, _ANY_FPS)


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
            *pick(MEDIA, "kind", "file_id", "scored", "reject_reason", "reject_detail"),
            pa.field("path", pa.string()),
            pa.field("path_is_temporary", pa.bool_()),
        ]
    )
    writes = pick(
        MEDIA,
        *("media_id", "start_s", "end_s", "width_px", "height_px", "fps", "duration_s", "num_frames", "format"),
        *("rotation_deg", "variable_fps", "aspect", *_MEANS, "phash", "flow", "flicker"),
        *("text_area", "text_boxes", "scored", "reject_reason", "reject_detail"),
    ).append(pa.field("views", pa.large_binary()))
    drops = ("path", "path_is_temporary")
    rows = "more"

    def __init__(
        self,
        config: SplitVideosConfig,
        lazy: Lazy | None = None,
        text: TextConfig | None = None,
        views_px: int | None = None,
    ):
        self._config = config
        self._lazy = lazy or Lazy({}, {})
        self._text_px = (text or TextConfig()).video_px
        self._find_text = TextDetector()
        self._views_px = views_px
        cv2.setNumThreads(1)  # one worker is one core; OpenCV would take them all

    def __call__(self, table: pa.Table) -> pa.Table:
        before = values_of(table, self.writes)
        values: dict[str, list] = {name: [] for name in self.writes.names}
        origins: list[int] = []
        for i, row in enumerate(table.select(self.reads.names).to_pylist()):
            if row["kind"] == "video" and row["reject_reason"] is None:
                known = {"media_id": row["file_id"], "format": before["format"][i]}
                found = self._rows_of(i, row["file_id"], row["path"], row["path_is_temporary"])
            else:
                known, found = {name: before[name][i] for name in self.writes.names}, [{}]
            for clip in found:
                origins.append(i)
                for name in self.writes.names:
                    values[name].append(clip[name] if name in clip else known.get(name))
        return replace(table.take(pa.array(origins, pa.int64())), self.writes, values, self.drops)

    def _rows_of(self, row: int, file_id: str, path: str, is_temporary: bool) -> list[dict[str, Any]]:
        kept = Kept() if self._lazy.scorers else None
        try:
            with limits.medium(row), Video(path, self._config.max_pixels) as video:
                scan = self._scan(video, kept)
                clips = self._clips(file_id, video, scan)
                if kept is not None:
                    self._score_lazily(clips, scan.samples, kept)
                return clips
        except RowError as rejected:
            return [rejected.columns]
        finally:
            if is_temporary:
                os.unlink(path)
            if kept is not None:
                kept.close()

    def _score_lazily(self, clips: list[dict[str, Any]], samples: list[Sample], kept: Kept) -> None:
        """Text, and the views of model-based scorers, for the clips whose verdict hangs on them."""
        if full := self._lazy.name("text"):
            for clip in self._wanting("text", clips):
                found = []
                for sample in _samples_in(samples, clip["start_s"], clip["end_s"]):
                    limits.beat()
                    found.append(self._find_text(kept.rgb(sample.kept or 0), self._text_px))
                if found:
                    clip["text_area"] = float(np.mean([text.area for text in found]))
                    clip["text_boxes"] = max(text.boxes for text in found)
                clip["scored"] = add_scored(clip.get("scored"), full)
        if self._views_px is not None:
            for clip in self._wanting("clip", clips):
                mine = _samples_in(samples, clip["start_s"], clip["end_s"])
                chosen = [mine[int((i + 0.5) / _NUM_VIEWS * len(mine))] for i in range(_NUM_VIEWS if mine else 0)]
                views = [make_view(kept.rgb(sample.kept or 0), self._views_px) for sample in chosen]
                clip["views"] = b"".join(views) or None
                if not views:  # no frame to look at: there is nothing to wait for
                    clip["scored"] = add_scored(clip.get("scored"), self._lazy.name("clip") or "clip")

    def _wanting(self, scorer: str, clips: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = pa.Table.from_pylist([{**clip, "kind": "video"} for clip in clips], schema=MEDIA)
        return [clips[row] for row in np.flatnonzero(self._lazy.wants(scorer, rows))]

    def _scan(self, video: Video, kept: Kept | None) -> _Scan:
        cuts = Cuts(self._config.cut_threshold, self._config.min_scene_frames)
        fades = Fades(self._config.fade_threshold, self._config.min_scene_frames)
        scan, sampler = _Scan(), Sampler(video, self._config.score_fps, kept)
        to_scan_size = video.shrinker(_SCAN_PX, is_coarse=True)  # as coarse as PySceneDetect's own
        try:
            for time_s, frame in video.frames():
                limits.beat()
                if time_s >= self._config.max_duration_s:
                    scan.ended = RowError("too_long", f"not read beyond {self._config.max_duration_s:g} s")
                    break
                small, number = to_scan_size(frame), len(scan.times_s)
                blue, green, red, _ = cv2.mean(small)
                found = cuts.at(number, small)
                scan.content_cuts += found
                scan.fade_cuts += fades.at(number, (blue + green + red) / 3)
                scan.times_s.append(time_s)
                scan.last_frame_s = video.shown_s(frame)
                scan.lumas.append(0.299 * red + 0.587 * green + 0.114 * blue)
                scan.samples += sampler.take(time_s, frame, is_cut=bool(found))
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
            "rotation_deg": video.quarter_turns * 90,
            "variable_fps": _is_variable(times_s),
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


def _is_variable(times_s: np.ndarray) -> bool | None:
    """Whether neighbouring frames stand apart by more than half as much again as others."""
    if len(times_s) < 3:
        return None
    low, high = np.quantile(np.diff(times_s), [0.02, 0.98])
    return bool(high > _VARIABLE_RATIO * low)


def _samples_in(samples: list[Sample], start_s: float, end_s: float) -> list[Sample]:
    return samples[_first_at(samples, start_s) : _first_at(samples, end_s)]


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
    samples = _samples_in(scan.samples, start_s, end_s)
    if not samples:
        return found
    for name in _MEANS:
        found[name] = float(np.mean([getattr(sample.scores, name) for sample in samples]))
    found["phash"] = samples[len(samples) // 2].scores.phash
    flows = [sample.flow for sample in samples[1:] if sample.flow is not None]
    found["flow"] = float(np.mean(flows)) if flows else None
    return found
