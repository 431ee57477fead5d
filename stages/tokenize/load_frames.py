"""Load the pixels to be tokenized: kept media -> frames at the exact size of their area bucket (frames.py)."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa

from tokenmill import storage
from tokenmill.stages.read.media_bytes import Places
from tokenmill.stages.table import limits
from tokenmill.stages.table.columns import PLACES
from tokenmill.stages.table.rows import RowError, replace, unreadable, values_of
from tokenmill.stages.tokenize import frames
from tokenmill.stages.video.decode import Video
from tokenmill.storage.identity import clip_id, content_id
from tokenmill.tokenizer.vision import weights

_OPENING = -1  # the part of a video's first clip that all its clips wait for


class LoadFrames:
    """Kept media -> `frames` (uint8 RGB, T x H x W x 3 in row-major order) with frames_t, frames_h, frames_w, fps.

    T is 1 for images and a multiple of 4 for clips. Costs one full decode of an image; of a clip, its frames and those
    back to the key frame before it. A video is opened once for all its clips in a table. Rejects: unreadable, vanished,
    changed (the file is no longer the one that was curated), corrupt, aspect, too_few_frames, and what ScoreImages
    rejects.
    Sides are multiples of what `tokenizer`, a name as in TokenizeConfig, makes one code of.
    """

    reads = PLACES
    writes = frames.FRAMES
    drops: tuple[str, ...] = ()
    rows = "same"

    def __init__(self, config: frames.LoadFramesConfig, tokenizer: str = weights.BUILTIN, fetched: str = ""):
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
            raise unreadable(error) from error
        if content_id([content]) != medium["media_id"]:
            raise _changed()
        return frames.of_image(content, self._config, self._factor)

    def _clips(self, rows: list[int], media: list[dict[str, Any]], values: dict[str, list]) -> None:
        try:
            path, file_id = self._local(rows[0], media[rows[0]])
            with ExitStack() as opened:
                with limits.medium(rows[0], _OPENING):
                    video = opened.enter_context(Video(path, self._config.max_pixels))
                for i in rows:
                    _fill(values, i, lambda medium: self._clip(video, file_id, medium), media[i])
        except RowError as rejected:
            for i in rows:
                _put(values, i, rejected.columns)

    def _clip(self, video: Video, file_id: str, medium: dict[str, Any]) -> dict[str, Any]:
        start_s, end_s = medium["start_s"], medium["end_s"]
        if clip_id(file_id, start_s, end_s) != medium["media_id"]:
            raise _changed()
        return frames.of_clip(video, start_s, end_s, self._config, self._factor)

    def _local(self, row: int, medium: dict[str, Any]) -> tuple[str, str]:
        """Local path and identity of a video. The last one is kept: its clips come in neighbouring tables."""
        place = medium["uri"], medium["member"]
        if self._last is None or self._last[0] != place:
            self._closing.close()
            self._last = None
            try:
                with limits.medium(row, _OPENING):
                    path = self._closing.enter_context(self._places.local_file(medium))
                    file_id = content_id(_with_beats(storage.read_chunks(path)))
            except (OSError, pa.ArrowException) as error:
                raise unreadable(error) from error
            self._last = place, path, file_id
        return self._last[1:]


def _with_beats(chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        limits.beat()
        yield chunk


def _changed() -> RowError:
    return RowError("changed", "the file is no longer the one that was curated; refresh the sources")


def _put(values: dict[str, list], i: int, found: dict[str, Any]) -> None:
    for name in values.keys() & found.keys():
        values[name][i] = found[name]


def _fill(
    values: dict[str, list], i: int, load: Callable[[dict[str, Any]], dict[str, Any]], medium: dict[str, Any]
) -> None:
    try:
        with limits.medium(i):
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
