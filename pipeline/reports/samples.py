"""What a model drew -> a PNG, an MP4, or a folder with a file each and samples.jsonl, which says what was asked."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenmill.pipeline.reports.sheet import image_grid
from tokenmill.pipeline.reports.video_file import write_video
from tokenmill.storage.errors import UserError


class OutError(UserError):
    """What was drawn does not go into such a file."""


@dataclass(frozen=True)
class Sample:
    """A picture, uint8 (H, W, 3) RGB, or a clip, (T, H, W, 3), and what was asked for."""

    pixels: np.ndarray
    asked: dict[str, Any]

    @property
    def is_clip(self) -> bool:
        return self.pixels.ndim == 4

    def as_dict(self) -> dict[str, Any]:
        """What was asked, and the size that came."""
        height, width = self.pixels.shape[-3:-1]
        num_frames = {"num_frames": len(self.pixels)} if self.is_clip else {}
        return self.asked | {"width_px": width, "height_px": height} | num_frames


def check_out(out: Path, is_clip: bool) -> None:
    """Before anything is drawn: whether the file can take it. Raises OutError."""
    suffix = out.suffix.lower()
    if suffix not in ("", ".png", ".mp4"):
        raise OutError(f"{out}: give a .png, a .mp4, or a folder, whose name has no dot")
    if suffix == ".mp4" and not is_clip:
        raise OutError(f"{out}: pictures do not move; give a .png or a folder")
    if suffix == "" and out.is_file():
        raise OutError(f"{out}: a file stands there; give a folder")


def write_samples(samples: Sequence[Sample], columns: int, fps: float, out: Path) -> list[Path]:
    """Write them, row by row in `columns`, and say where each is.

    A PNG is a grid of pictures, or of clips their frames, a row each; an MP4 plays all clips side by side, at `fps`.
    """
    check_out(out, samples[0].is_clip)
    suffix = out.suffix.lower()
    if suffix == "":
        return _folder(samples, fps, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".mp4":
        write_video(out, _side_by_side([sample.pixels for sample in samples], columns), fps)
    elif samples[0].is_clip:
        longest = max(len(sample.pixels) for sample in samples)
        frames = [sample.pixels[min(t, len(sample.pixels) - 1)] for sample in samples for t in range(longest)]
        image_grid(frames, longest).save(out)
    else:
        image_grid([sample.pixels for sample in samples], columns).save(out)
    return [out] * len(samples)


def _side_by_side(clips: Sequence[np.ndarray], columns: int) -> list[np.ndarray]:
    """Frames of a grid of clips; the last frame of a shorter one stays."""
    longest = max(map(len, clips))
    frames = []
    for t in range(longest):
        grid = np.asarray(image_grid([clip[min(t, len(clip) - 1)] for clip in clips], columns))
        frames.append(np.pad(grid, ((0, len(grid) % 2), (0, grid.shape[1] % 2), (0, 0)), mode="edge"))
    return frames


def _folder(samples: Sequence[Sample], fps: float, out: Path) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{number:04d}{'.mp4' if each.is_clip else '.png'}" for number, each in enumerate(samples)]
    for path, sample in zip(paths, samples, strict=True):
        if sample.is_clip:
            write_video(path, _side_by_side([sample.pixels], 1), fps)
        else:
            image_grid([sample.pixels], 1).save(path)
    lines = [json.dumps({"file": path.name} | each.as_dict()) for path, each in zip(paths, samples, strict=True)]
    (out / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths
