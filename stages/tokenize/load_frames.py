"""Load the pixels to be tokenized: kept media -> frames at the exact size of their area bucket.

Images are decoded at full resolution and resized once (Emu3's own preparation resizes twice). Clips are resampled to a
fixed rate by presentation time, as a player would show them, and trimmed to a multiple of 4 frames, the group that
becomes one grid of codes; what is trimmed is counted. Nothing is ever padded: padding changes the codes of the valid
area (39 % of the codes agree with 64 px of padding beside a 64 px image).
"""

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from tokenmill import storage
from tokenmill.stages.image.pixels import Picture
from tokenmill.stages.read.media_bytes import Places
from tokenmill.stages.table.columns import MEDIA, PLACES
from tokenmill.stages.table.rows import RowError, pick, replace, values_of, words
from tokenmill.stages.video.decode import Video
from tokenmill.storage.identity import Config, clip_id, content_id
from tokenmill.tokenizer import geometry
from tokenmill.tokenizer.shards import TOKENS
from tokenmill.tokenizer.vision import weights


class LoadFramesConfig(Config):
    """At which size and rate media are tokenized."""

    area_px: int = Field(
        default=512 * 512,
        gt=0,
        description="too small: detail is lost; too large: codes, and cost, grow with it (Emu3: 512 x 512)",
    )
    enlarge: bool = Field(
        default=True,
        description="false: media smaller than the area keep their size; true: they are blurred, all have one area",
    )
    max_aspect: float = Field(
        default=5.0,
        ge=1,
        description="too small: panoramas are rejected; too large: buckets hold few media each (Emu3: 5)",
    )
    clip_fps: float = Field(
        default=24.0,
        gt=0,
        description="too small: motion jumps; too large: frames repeat and sequences grow (Emu3: about 24)",
    )
    max_frames: int = Field(
        default=120,
        ge=4,
        description="too small: clips lose their end; too large: one clip fills a sequence (Emu3: 120)",
    )
    max_pixels: int = Field(
        default=100_000_000,
        gt=0,
        description="too small: large media are rejected; too large: one file fills the worker's memory",
    )


def fitted_size(width_px: int, height_px: int, config: LoadFramesConfig, factor: int = 8) -> tuple[int, int]:
    """(width, height), multiples of `factor`, at which a medium of this size is tokenized. Raises AspectError."""
    return geometry.fit_area(width_px, height_px, config.area_px, factor, config.max_aspect, config.enlarge)


def bucket(width_px: int | None, height_px: int | None, config: LoadFramesConfig) -> str | None:
    """The size at which a medium is tokenized as one text, the same for media that can share a batch; null where it is
    rejected for its aspect, and for what has no size.
    """
    if width_px is None or height_px is None:
        return None
    try:
        return "x".join(map(str, fitted_size(width_px, height_px, config)))
    except geometry.AspectError:
        return None


class LoadFrames:
    """Kept media -> `frames` (uint8 RGB, T x H x W x 3 in row-major order) with frames_t, frames_h, frames_w, fps.

    T is 1 for images and a multiple of 4 for clips. Costs one full decode of an image; of a clip, its frames and those
    back to the key frame before it. A video is opened once for all its clips in a table. Rejects: unreadable, changed
    (the file is no longer the one that was curated), corrupt, aspect, too_few_frames, and what ScoreImages rejects.
    Sides are multiples of what `tokenizer`, a name as in TokenizeConfig, makes one code of.
    """

    reads = PLACES
    writes = pa.schema(
        [
            pa.field("frames", pa.large_binary()),
            pa.field("frames_t", pa.int32()),
            pa.field("frames_h", pa.int32()),
            pa.field("frames_w", pa.int32()),
            *pick(TOKENS, "fps", "frames_trimmed"),
            *pick(MEDIA, "reject_reason", "reject_detail"),
        ]
    )
    drops: tuple[str, ...] = ()
    rows = "same"

    def __init__(self, config: LoadFramesConfig, tokenizer: str = weights.BUILTIN, fetched: str = ""):
        self._config = config
        self._factor = weights.spatial_factor(tokenizer)
        self._places = Places(fetched)
        self._last: tuple[tuple[str, str | None], str, str] | None = None  # place, local path, identity of a video
        self._closing = ExitStack()  # removes its temporary copy

    def __call__(self, table: pa.Table) -> pa.Table:
        values = values_of(table, self.writes)
        media = table.select(self.reads.names).to_pylist()
        clips_of: dict[tuple[str, str | None], list[int]] = defaultdict(list)
        for i, medium in enumerate(media):
            if values["reject_reason"][i] is not None:
                continue
            if medium["kind"] == "video":
                clips_of[medium["uri"], medium["member"]].append(i)
            elif medium["kind"] == "image":
                _fill(values, i, self._image, medium)
        for rows in clips_of.values():
            self._clips(sorted(rows, key=lambda i: media[i]["start_s"]), media, values)
        values["frames"] = _binary(values["frames"])
        return replace(table, self.writes, values)

    def _image(self, medium: dict[str, Any]) -> dict[str, Any]:
        try:
            content = self._places.read(medium)
        except (OSError, pa.ArrowException) as error:
            raise RowError("unreadable", words(error)) from error
        if content_id([content]) != medium["media_id"]:
            raise _changed()
        picture = Picture(content, self._config.max_pixels)
        size = self._size(picture.width_px, picture.height_px)
        return _columns(geometry.resize(picture.rgb(), size)[None])

    def _size(self, width_px: int, height_px: int) -> tuple[int, int]:
        try:
            return fitted_size(width_px, height_px, self._config, self._factor)
        except geometry.AspectError as error:
            raise RowError("aspect", words(error)) from error

    def _clips(self, rows: list[int], media: list[dict[str, Any]], values: dict[str, list]) -> None:
        try:
            path, file_id = self._local(media[rows[0]])
            with Video(path, self._config.max_pixels) as video:
                for i in rows:
                    _fill(values, i, lambda medium: self._clip(video, file_id, medium), media[i])
        except RowError as rejected:
            for i in rows:
                _put(values, i, rejected.columns)

    def _clip(self, video: Video, file_id: str, medium: dict[str, Any]) -> dict[str, Any]:
        start_s, end_s, config = medium["start_s"], medium["end_s"], self._config
        if clip_id(file_id, start_s, end_s) != medium["media_id"]:
            raise _changed()
        times_s = geometry.sample_times(start_s, end_s, config.clip_fps, config.max_frames)
        num_frames, trimmed = geometry.trim_to_groups(len(times_s))
        if num_frames == 0:
            detail = f"{trimmed} frames at {config.clip_fps:g} per second; too few to fill a group"
            raise RowError("too_few_frames", detail)
        width, height = self._size(video.width_px, video.height_px)
        clip = np.empty((num_frames, height, width, 3), np.uint8)
        shown = None
        for t, time_s in enumerate(times_s[:num_frames].tolist()):
            frame = video.frame_at(time_s)
            clip[t] = clip[t - 1] if frame is shown else geometry.resize(video.upright(frame), (width, height))
            shown = frame
        return {**_columns(clip), "fps": config.clip_fps, "frames_trimmed": trimmed}

    def _local(self, medium: dict[str, Any]) -> tuple[str, str]:
        """Local path and identity of a video. The last one is kept: its clips come in neighbouring tables."""
        place = medium["uri"], medium["member"]
        if self._last is None or self._last[0] != place:
            self._closing.close()
            self._last = None
            try:
                path = self._closing.enter_context(self._places.local_file(medium))
                file_id = content_id(storage.read_chunks(path))
            except (OSError, pa.ArrowException) as error:
                raise RowError("unreadable", words(error)) from error
            self._last = place, path, file_id
        return self._last[1:]


def _changed() -> RowError:
    return RowError("changed", "the file is no longer the one that was curated; refresh the sources")


def _columns(frames: np.ndarray) -> dict[str, Any]:
    num_frames, height, width, _ = frames.shape
    return {"frames": frames, "frames_t": num_frames, "frames_h": height, "frames_w": width}


def _put(values: dict[str, list], i: int, found: dict[str, Any]) -> None:
    for name in values.keys() & found.keys():
        values[name][i] = found[name]


def _fill(
    values: dict[str, list], i: int, load: Callable[[dict[str, Any]], dict[str, Any]], medium: dict[str, Any]
) -> None:
    try:
        _put(values, i, load(medium))
    except RowError as rejected:
        _put(values, i, rejected.columns)


def _binary(arrays: list[np.ndarray | None]) -> pa.Array:
    """large_binary of the arrays' bytes, copied once: a clip is 94 MB."""
    sizes = [0 if array is None else array.nbytes for array in arrays]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    data = np.empty(int(offsets[-1]), np.uint8)
    for array, start, end in zip(arrays, offsets, offsets[1:], strict=False):
        if array is not None:
            data[start:end] = array.reshape(-1)
    valid = pa.array([array is not None for array in arrays], pa.bool_()).buffers()[1]
    return pa.Array.from_buffers(pa.large_binary(), len(arrays), [valid, pa.py_buffer(offsets), pa.py_buffer(data)])
