"""One medium -> its pixels at the exact size at which it is tokenized.

Images are decoded at full resolution and resized once (Emu3's own preparation resizes twice). Clips are resampled to a
fixed rate by presentation time, as a player would show them, and trimmed to a multiple of 4 frames, the group that
becomes one grid of codes; what is trimmed is counted. Nothing is ever padded: padding changes the codes of the valid
area (39 % of the codes agree with 64 px of padding beside a 64 px image).
"""

from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from tokenmill.stages.image.pixels import Picture
from tokenmill.stages.table import limits
from tokenmill.stages.table.columns import MEDIA
from tokenmill.stages.table.rows import RowError, pick, words
from tokenmill.stages.video.decode import Video
from tokenmill.storage.identity import Config
from tokenmill.tokenizer import geometry
from tokenmill.tokenizer.shards import TOKENS

FRAMES = pa.schema(
    [
        pa.field("frames", pa.large_binary()),
        pa.field("frames_t", pa.int32()),
        pa.field("frames_h", pa.int32()),
        pa.field("frames_w", pa.int32()),
        *pick(TOKENS, "fps", "frames_trimmed"),
        *pick(MEDIA, "reject_reason", "reject_detail"),
    ]
)


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


def of_image(content: bytes, config: LoadFramesConfig, factor: int) -> dict[str, Any]:
    """Columns of FRAMES for the bytes of an image file. Raises RowError: aspect, and what Picture raises."""
    picture = Picture(content, config.max_pixels)
    size = _size(picture.width_px, picture.height_px, config, factor)
    return _columns(geometry.resize(picture.rgb(), size)[None])


def of_clip(video: Video, start_s: float, end_s: float, config: LoadFramesConfig, factor: int) -> dict[str, Any]:
    """Columns of FRAMES for a span of a video. Raises RowError: aspect, too_few_frames, and what Video raises."""
    times_s = geometry.sample_times(start_s, end_s, config.clip_fps, config.max_frames)
    num_frames, trimmed = geometry.trim_to_groups(len(times_s))
    if num_frames == 0:
        detail = f"{trimmed} frames at {config.clip_fps:g} per second; too few to fill a group"
        raise RowError("too_few_frames", detail)
    width, height = _size(video.width_px, video.height_px, config, factor)
    clip = np.empty((num_frames, height, width, 3), np.uint8)
    shown = None
    for t, time_s in enumerate(times_s[:num_frames].tolist()):
        limits.beat()
        frame = video.frame_at(time_s)
        clip[t] = clip[t - 1] if frame is shown else geometry.resize(video.upright(frame), (width, height))
        shown = frame
    return {**_columns(clip), "fps": config.clip_fps, "frames_trimmed": trimmed}


def _size(width_px: int, height_px: int, config: LoadFramesConfig, factor: int) -> tuple[int, int]:
    try:
        return fitted_size(width_px, height_px, config, factor)
    except geometry.AspectError as error:
        raise RowError("aspect", words(error)) from error


def _columns(frames: np.ndarray) -> dict[str, Any]:
    num_frames, height, width, _ = frames.shape
    return {"frames": frames, "frames_t": num_frames, "frames_h": height, "frames_w": width}
