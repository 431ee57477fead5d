"""Captions hidden from the demo's corpus, written again by a captioner that learned from the rest, and judged.

What a scene shows is known to the letter, so a caption is right where it is the one that was drawn. Clips keep theirs:
a dozen videos are too few to learn motion from.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.captioner.judge import asked
from tokenmill.pipeline.captioner.train import train_captioner
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.demo.scenes import NUM_HELD_OUT, SCENE, split
from tokenmill.pipeline.reports.terminal import table

CAPTIONED_SHARE = 0.25
LEAST_TO_HIDE = 240  # scenes; of fewer a quarter teaches nothing
OWN = "own"  # the captioner trained here, in caption.captioners
_LIST = "captions.jsonl"
_BATCH = 64  # scenes captioned at a time


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
    names = sorted(file.name for file in images.glob(f"{SCENE}*.png"))
    order = np.random.default_rng([seed, 1]).permutation(len(names))
    hidden = {names[at] for at in order[round(share * len(names)) :]}
    lines = (images / _LIST).read_text().splitlines(keepends=True)
    (images / _LIST).write_text("".join(line for line in lines if json.loads(line)["file"] not in hidden))
    for name in hidden:
        (images / name).with_suffix(".txt").unlink(missing_ok=True)
    return hidden


@contextmanager
def with_own_captioner(config: RunConfig, console: Console) -> Iterator[RunConfig]:
    """Train a captioner on the source captions as `captioner` of the config says; while inside, the config given has it
    as captioner OWN, of what has no source caption. Raises what training it raises.
    """
    with storage.local_folder(train_captioner(config, console)) as folder:
        one = asked(config.captioner.train, str(folder), _BATCH).model_copy(update={"only_without": ("source",)})
        captioners = {**config.caption.captioners, OWN: one}
        caption = config.caption.model_copy(update={"use": ("source", OWN), "captioners": captioners})
        yield config.model_copy(update={"caption": caption})


def scenes(catalog: Catalog) -> dict[str, str]:
    """Name of its file -> media_id, of each scene; one of them has a copy among the broken files."""
    sources = catalog.sources.scan(["uri", "member", "file_id"], pc.field("file_id").is_valid())
    places = pc.coalesce(sources["member"], sources["uri"])
    names = [place.rsplit("/", 1)[-1] for place in places.to_pylist()]
    return {name: i for name, i in zip(names, sources["file_id"].to_pylist(), strict=True) if name.startswith(SCENE)}


def written_captions(root: str, captioner: str = OWN) -> dict[str, str | None]:
    """Name of a scene's file -> what a captioner wrote of it, null where that does not count."""
    catalog = Catalog(root)
    rows = catalog.captions.scan(["media_id", "caption", "reject_reason"], pc.field("captioner") == captioner)
    counting = pc.if_else(pc.is_null(rows["reject_reason"]), rows["caption"], None)
    texts = dict(zip(rows["media_id"].to_pylist(), counting.to_pylist(), strict=True))
    return {name: texts[media_id] for name, media_id in scenes(catalog).items() if media_id in texts}


def true_captions(num_images: int, seed: int = 0) -> dict[str, str]:
    """File name -> caption, of all scenes of such a corpus."""
    scenes, _ = split(seed, num_images, NUM_HELD_OUT)
    return {f"{SCENE}{index + 1:04d}.png": scene.caption for index, scene in enumerate(scenes)}


def judge_captions(written: Mapping[str, str | None], true: Mapping[str, str]) -> Right:
    """File name -> what a captioner wrote, and -> what it should have."""
    right = sum(text == true[name] for name, text in written.items())
    return Right(len(written), right, sum(text is None for text in written.values()))


def print_captions(found: Mapping[str, Right], console: Console) -> None:
    """A line for each captioner, on the terminal."""
    made = table("Captions by the captioners trained here", "captioner", "scenes#", "right#", "share#", "none written#")
    for name, of in found.items():
        share = of.num_right / max(1, of.num_scenes)
        made.add_row(name, f"{of.num_scenes:,}", f"{of.num_right:,}", f"{share:.1%}", f"{of.num_missing:,}")
    console.print(made)
