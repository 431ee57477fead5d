"""Media of the catalog or of a folder -> squares to judge a tokenizer on, by the protocol of Emu3's Table 2.

The shorter side is resized to the size and the centre cropped to a square, each size by one bicubic resize from the
original. Clips are 8 frames at 12 frames a second from their middle. Emu3 codes the whole video and crops after; here
the crop is coded. What is smaller than a size is left out of it, never enlarged.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tokenmill import stages
from tokenmill.tokenizer import geometry

NUM_FRAMES = 8
FPS = 12.0
_SPAN_S = NUM_FRAMES / FPS
_MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class Medium:
    """An image, or a clip of a video; without a span the whole video."""

    kind: str
    uri: str
    start_s: float | None = None
    end_s: float | None = None
    place: Mapping[str, Any] | None = None  # columns of PLACES; null: the whole file at `uri`

    @property
    def name(self) -> str:
        """The file's name."""
        return self.uri.rsplit("/", 1)[-1]

    @property
    def where(self) -> Mapping[str, Any]:
        """What Places opens."""
        return self.place or {"uri": self.uri, "member": None, "offset_bytes": None}


@dataclass
class Squares:
    """Reads media as squares; counts by reason what it could not use."""

    sides_px: list[int]
    fetched: str
    left_out: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._places = stages.Places(self.fetched)

    def of(self, medium: Medium) -> dict[int, np.ndarray]:
        """Each side, where the medium is large enough -> uint8 (T, side, side, 3), T 1 or 8; empty when unusable."""
        try:
            frames = self._clip(medium) if medium.kind == "video" else self._image(medium)
        except stages.RowError as rejected:
            self.left_out[str(rejected.columns["reject_reason"])] += 1
            return {}
        except (OSError, pa.ArrowException):
            self.left_out["unreadable"] += 1
            return {}
        for side in self.sides_px:
            self.left_out[f"below {side} px"] += side not in frames
        return frames

    def _image(self, medium: Medium) -> dict[int, np.ndarray]:
        rgb = stages.Picture(self._places.read(medium.where), _MAX_PIXELS).rgb()
        return {side: square(rgb, side)[None] for side in self.sides_px if side <= min(rgb.shape[:2])}

    def _clip(self, medium: Medium) -> dict[int, np.ndarray]:
        with self._places.local_file(medium.where) as path, stages.Video(path, _MAX_PIXELS) as video:
            start_s = medium.start_s or 0.0
            end_s = medium.end_s if medium.end_s is not None else video.declared_s
            if end_s is None or end_s - start_s < _SPAN_S - 1e-6:
                raise stages.RowError("too_short", f"no {NUM_FRAMES} frames at {FPS:g} per second")
            first_s = start_s + (end_s - start_s - _SPAN_S) / 2
            times_s = [first_s + number / FPS for number in range(NUM_FRAMES)]
            sides = [side for side in self.sides_px if side <= min(video.width_px, video.height_px)]
            frames: dict[int, list[np.ndarray]] = {side: [] for side in sides}
            for frame in stages.frames_at(video, times_s):
                rgb = video.upright(frame)
                for side in sides:
                    frames[side].append(square(rgb, side))
        return {side: np.stack(each) for side, each in frames.items()}


def square(rgb: np.ndarray, side_px: int) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (side_px, side_px, 3): the shorter side resized, the centre cropped."""
    height, width = rgb.shape[:2]
    scale = side_px / min(height, width)
    size = max(side_px, round(width * scale)), max(side_px, round(height * scale))
    resized = geometry.resize(np.ascontiguousarray(rgb), size)
    top, left = (size[1] - side_px) // 2, (size[0] - side_px) // 2
    return resized[top : top + side_px, left : left + side_px]


def from_catalog(media: pa.Table) -> list[Medium]:
    """Rows of `media` with the columns of PLACES, in their order."""
    return [
        Medium(row["kind"], row["member"] or row["uri"], row["start_s"], row["end_s"], row) for row in media.to_pylist()
    ]


def from_folder(folder: Path) -> list[Medium]:
    """Images and videos by their first bytes, in an order that is random and always the same."""
    found = sorted(_media_in(folder), key=lambda medium: medium.uri)
    order = np.random.default_rng(0).permutation(len(found))
    return [found[index] for index in order]


def _media_in(folder: Path) -> Iterator[Medium]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            with path.open("rb") as file:
                kind, _ = stages.sniff(file.read(stages.HEAD_BYTES))
            if kind in ("image", "video"):
                yield Medium(kind, str(path))
