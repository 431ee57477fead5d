"""Split videos into clips and score them: one sequential decode per file -> one row per clip.

Emu3 2.1 and A.1: PySceneDetect's ContentDetector (threshold 27) and ThresholdDetector (12, fades) find the scenes; flow
is measured at 2 FPS with the shorter edge at 256 px, its mean magnitude divided by the shorter edge. Here one decoding
pass feeds all of it: every frame is shrunk to a shorter edge of 144 px (256 x 144 for 16:9, the size at which
PySceneDetect itself works) for cuts and flicker, and only the frames sampled at 2 FPS to 256 px for the scores. Flow is
OpenCV's DIS (preset FAST): 3 ms a pair at 455 x 256, within 1 % of shifts up to 20 px; Farneback takes 30 ms and
finds 70 to 90 %.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
from pydantic import Field
from scenedetect.common import FrameTimecode
from scenedetect.detectors import ContentDetector, ThresholdDetector

from stages.columns import MEDIA
from stages.measures import SCORING_PX, PictureScores, measure
from stages.rows import Rejected, pick, replace, values_of, words
from stages.video import Broken, Video
from tokenizer.identity import Config, clip_id

_SCAN_PX = 144
_MIN_FLOW_PX = 32  # OpenCV's DIS reads out of bounds on elongated frames below this
_ANY_FPS = 25.0  # the detectors get frame numbers as time, and count frames only
_MAX_MISSING_S = 1.0  # headers are wrong by less than this without a frame missing
_MAX_MISSING_SHARE = 0.05


class SplitVideosConfig(Config):
    """How scenes are found and clips are scored."""

    cut_threshold: float = Field(
        27.0, gt=0, description="too small: motion becomes cuts; too large: scenes run into each other (Emu3: 27)"
    )
    fade_threshold: int = Field(
        12,
        ge=0,
        le=255,
        description="too small: dark fades are no scene ends; too large: dark scenes fall apart (Emu3: 12)",
    )
    min_scene_frames: int = Field(
        15, ge=0, description="too small: flashes become scenes; too large: fast cutting runs into one scene"
    )
    max_clip_s: float = Field(
        20.0, gt=0, description="too small: actions are torn apart; too large: clips no longer fit into a sequence"
    )
    score_fps: float = Field(
        2.0, gt=0, description="too small: motion between samples is missed; too large: scoring costs more than decoding"
    )
    max_pixels: int = Field(
        8192 * 4320, gt=0, description="too small: large videos are rejected; too large: one fills the worker's memory"
    )
    max_duration_s: float = Field(
        4 * 3600.0, gt=0, description="too small: the rest of long videos is rejected; too large: one file holds a worker"
    )


@dataclass
class _Sample:
    """Scores of one sampled frame; `flow` is that since the sample before it (null: there is none to compare with)."""

    time_s: float
    scores: PictureScores
    flow: float | None


@dataclass
class _Scan:
    """What one pass over a video leaves: a number or two per frame, a record per sample, no pixels."""

    times_s: list[float] = field(default_factory=list)
    lumas: list[float] = field(default_factory=list)
    samples: list[_Sample] = field(default_factory=list)
    content_cuts: list[int] = field(default_factory=list)
    fade_cuts: list[int] = field(default_factory=list)
    ended: Rejected | None = None  # why it ended before the file did


class SplitVideos:
    """Videos with `path` -> one row per clip [start_s, end_s), with its scores. `path` is dropped, a temporary file deleted.

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
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)

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
        except Rejected as rejected:
            return [rejected.columns]
        finally:
            if is_temporary:
                os.unlink(path)

    def _scan(self, video: Video) -> _Scan:
        content = ContentDetector(self._config.cut_threshold, self._config.min_scene_frames)
        fades = ThresholdDetector(self._config.fade_threshold, self._config.min_scene_frames)
        scan, sampler = _Scan(), _Sampler(video, self._config.score_fps, self._flow)
        to_scan_size = video.shrinker(_SCAN_PX)
        try:
            for time_s, frame in video.frames():
                if time_s >= self._config.max_duration_s:
                    scan.ended = Rejected("too_long", f"not read beyond {self._config.max_duration_s:g} s")
                    break
                small = to_scan_size(frame)
                number = FrameTimecode(len(scan.times_s), _ANY_FPS)
                cuts = content.process_frame(number, small)
                scan.content_cuts += [cut.frame_num for cut in cuts]
                scan.fade_cuts += [cut.frame_num for cut in fades.process_frame(number, small)]
                scan.times_s.append(time_s)
                scan.lumas.append(cv2.mean(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY))[0])
                scan.samples += sampler.take(time_s, frame, is_cut=bool(cuts))
        except Broken as broken:
            scan.ended = Rejected("broken_tail", str(broken))
        except (av.FFmpegError, ValueError) as error:  # of the conversion: pixels in a form that no scaler takes
            scan.ended = Rejected("broken_tail", words(error))
        if not scan.times_s:
            reason = "no frame decodes" if scan.ended is None else scan.ended.columns["reject_detail"]
            raise Rejected("no_frames", reason, format=video.codec)
        return scan

    def _clips(self, file_id: str, video: Video, scan: _Scan) -> list[dict[str, Any]]:
        times_s = np.array(scan.times_s)
        interval_s = float(np.median(np.diff(times_s))) if len(times_s) > 1 else video.interval_s
        end_s = round(float(times_s[-1]) + interval_s, 6)
        shared = {
            "width_px": video.width_px,
            "height_px": video.height_px,
            "fps": (len(times_s) - 1) / float(times_s[-1]) if len(times_s) > 1 else 1 / interval_s,
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
            scan.ended = Rejected("broken_tail", f"frames end at {end_s:.3f} s of {video.declared_s:.3f} s")
        if scan.ended is not None:
            rest_s = end_s + missing_s if missing_s > 0 else None
            clips.append({**shared, **_span(file_id, end_s, rest_s), **scan.ended.columns})
        return clips

    def _bounds(self, scan: _Scan, edges_s: np.ndarray) -> Iterator[int]:
        """First frames of the clips. Long scenes are cut evenly, at the first frame at or after each even point."""
        near = self._config.min_scene_frames  # a fade that is also a cut is one scene end
        fades = [fade for fade in scan.fade_cuts if all(abs(fade - cut) >= near for cut in scan.content_cuts)]
        scenes = sorted({0, *scan.content_cuts, *fades})
        for first, last in zip(scenes, [*scenes[1:], len(edges_s) - 1], strict=True):
            num_parts = int(np.ceil((edges_s[last] - edges_s[first]) / self._config.max_clip_s - 1e-6))
            points = np.linspace(edges_s[first], edges_s[last], max(1, num_parts), endpoint=False)
            yield from np.unique(np.searchsorted(edges_s, points - 1e-6)).tolist()


class _Sampler:
    """Scores frames at `fps` by presentation time, starting anew at each cut so that every scene has a sample."""

    def __init__(self, video: Video, fps: float, flow: cv2.DISOpticalFlow):
        self._shrink, self._turns = video.shrinker(SCORING_PX), video.quarter_turns
        self._fps, self._flow = fps, flow
        self._anchor_s = self._next_s = self._last_s = 0.0
        self._last_luma: np.ndarray | None = None

    def take(self, time_s: float, frame: av.VideoFrame, is_cut: bool) -> list[_Sample]:
        """The sample of this frame, if one is due."""
        if is_cut:
            self._anchor_s, self._last_luma = time_s, None
        elif time_s < self._next_s:
            return []
        steps = np.floor((time_s - self._anchor_s) * self._fps + 1e-6) + 1
        self._next_s = float(self._anchor_s + steps / self._fps) - 1e-6
        bgr = np.ascontiguousarray(np.rot90(self._shrink(frame), self._turns))
        luma = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
        sample = _Sample(time_s, measure(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)), self._flow_since_last(time_s, luma))
        self._last_luma, self._last_s = luma, time_s
        return [sample]

    def _flow_since_last(self, time_s: float, luma: np.ndarray) -> float | None:
        """Mean magnitude / shorter edge, per sampling period: frames do not fall on the sampling grid."""
        if self._last_luma is None or min(luma.shape) < _MIN_FLOW_PX:
            return None
        vectors = self._flow.calc(self._last_luma, luma, None)
        magnitude = float(cv2.magnitude(vectors[..., 0], vectors[..., 1]).mean())
        return magnitude / min(luma.shape) / ((time_s - self._last_s) * self._fps)


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
    samples = [sample for sample in scan.samples if start_s <= sample.time_s < end_s]
    if not samples:
        return found
    for name in ("sharpness", "luminance", "contrast", "colourfulness"):
        found[name] = float(np.mean([getattr(sample.scores, name) for sample in samples]))
    found["phash"] = samples[len(samples) // 2].scores.phash
    flows = [sample.flow for sample in samples[1:] if sample.flow is not None]
    found["flow"] = float(np.mean(flows)) if flows else None
    return found
