"""Captions hidden from the demo's corpus, written again by a captioner that learned from the rest, and judged.

What a scene shows is known to the letter, so a caption is right where it is the one that was drawn. Clips keep theirs:
a dozen videos are too few to learn motion from.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from tokenmill.pipeline.demo.scenes import NUM_HELD_OUT, split
from tokenmill.pipeline.reports.terminal import table

CAPTIONED_SHARE = 0.25
_LIST = "captions.jsonl"


class Right(NamedTuple):
    """Of so many scenes, how many captions are what was drawn, and how many scenes have none."""

    num_scenes: int
    num_right: int
    num_missing: int


def hide_captions(folder: Path, share: float = CAPTIONED_SHARE, seed: int = 0) -> set[str]:
    """Take the captions of all but `share` of the scenes out of a corpus that `write_corpus` wrote into `folder`;
    returns the names of the files that have none now.
    """
    images = folder / "images"
    names = sorted(file.name for file in images.glob("scene_*.png"))
    order = np.random.default_rng([seed, 1]).permutation(len(names))
    hidden = {names[at] for at in order[round(share * len(names)) :]}
    lines = (images / _LIST).read_text().splitlines(keepends=True)
    (images / _LIST).write_text("".join(line for line in lines if json.loads(line)["file"] not in hidden))
    for name in hidden:
        (images / name).with_suffix(".txt").unlink(missing_ok=True)
    return hidden


def true_captions(num_images: int, seed: int = 0) -> dict[str, str]:
    """File name -> caption, of all scenes of such a corpus."""
    scenes, _ = split(seed, num_images, NUM_HELD_OUT)
    return {f"scene_{index + 1:04d}.png": scene.caption for index, scene in enumerate(scenes)}


def judge_captions(written: Mapping[str, str | None], num_images: int, seed: int = 0) -> Right:
    """`written`: file name -> what a captioner wrote, of the scenes whose captions were hidden."""
    true = true_captions(num_images, seed)
    right = sum(text == true[name] for name, text in written.items())
    return Right(len(written), right, sum(text is None for text in written.values()))


def print_captions(found: Right, console: Console) -> None:
    """A line on the terminal."""
    made = table("Captions written by the captioner trained here", "scenes#", "right#", "share#", "none written#")
    share = found.num_right / max(1, found.num_scenes)
    made.add_row(f"{found.num_scenes:,}", f"{found.num_right:,}", f"{share:.1%}", f"{found.num_missing:,}")
    console.print(made)
