"""A file of a picture or a video -> its frames exactly as tokenizing sees them: the same decoders, size and rate."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenmill import stages
from tokenmill.pipeline.reports.terminal import with_meaning
from tokenmill.stages.tokenize import frames
from tokenmill.storage.errors import UserError


class MediaFileError(UserError):
    """A file holds no picture or video that can be read; the message says why."""


class Medium(NamedTuple):
    """`frames` uint8 (T, H, W, 3) RGB; `fps` of a clip, null of a picture, whose T is 1."""

    frames: np.ndarray
    fps: float | None


def read_medium(path: Path, config: stages.LoadFramesConfig, factor: int) -> Medium:
    """The whole picture, or a video from its start to its end or `max_frames`. `factor`: pixels of a code's side.

    Raises MediaFileError.
    """
    try:
        with path.open("rb") as file:
            kind, _ = stages.sniff(file.read(stages.HEAD_BYTES)) or ("unknown", "")
        if kind == "image":
            columns = frames.of_image(path.read_bytes(), config, factor)
        elif kind == "video":
            with stages.Video(str(path), config.max_pixels) as video:
                columns = frames.of_clip(video, 0.0, _end_s(video, config), config, factor)
        else:
            raise MediaFileError(f"{path}: neither a picture nor a video that can be read; give a JPEG, PNG, MP4, ...")
    except OSError as error:
        raise MediaFileError(f"{path}: {error.strerror or error}; give a file of a picture or a video") from error
    except stages.RowError as error:
        said = error.columns
        detail = f" ({said['reject_detail']})" if said.get("reject_detail") else ""
        raise MediaFileError(f"{path}: {with_meaning(str(said['reject_reason']))}{detail}") from error
    return Medium(columns["frames"], columns.get("fps"))


def _end_s(video: stages.Video, config: stages.LoadFramesConfig) -> float:
    """Where the video ends, or where more than the frames that are taken have been seen."""
    last_s = 0.0
    try:
        for time_s, _ in video.frames():
            last_s = time_s
            if time_s * config.clip_fps > config.max_frames:
                break
    except stages.BrokenVideoError:  # what comes before the damage is shown
        pass
    video.rewind()
    return last_s + video.interval_s
