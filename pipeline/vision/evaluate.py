"""`tokenmill tokenizer eval`: the config's vision tokenizer judged on kept media or a folder, by Emu3's protocol.

Curates first, as `tokenizer train` does; a folder needs no catalog. Media are squares of several sizes (how: see
pipeline/vision/media.py), the figures those of tokenizer/vision/evaluation/evaluate.py, each beside JPEG at equal bits
per pixel. LPIPS and FID need weights given by path. Leaves a table on the terminal, reconstructions.png, clips.png and
eval.json.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import CatalogError
from tokenmill.pipeline.config import ConfigError, RunConfig
from tokenmill.pipeline.vision.kept import kept_media
from tokenmill.pipeline.vision.media import Medium, Squares, from_catalog, from_folder
from tokenmill.pipeline.vision.report import NUM_EXAMPLES, Evaluation, show, write
from tokenmill.tokenizer.vision import weights
from tokenmill.tokenizer.vision.evaluation.evaluate import Judge
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer

SIDES_PX = (128, 256, 512)
_CLIPS_PER_IMAGE = 0.25
_BATCH_PX = 1 << 21


@dataclass(frozen=True)
class EvalOptions:
    """What is judged: at most `num_images` images and a quarter as many clips, at `sides_px`, from the catalog or from
    `folder`; with LPIPS and FID where their weights are given.
    """

    num_images: int
    sides_px: tuple[int, ...]
    out: Path
    folder: Path | None = None
    lpips: Path | None = None
    fid: Path | None = None


def evaluate(config: RunConfig, options: EvalOptions, console: Console) -> dict[str, Any]:
    """Judge `tokenize.model`; returns what eval.json holds.

    Raises ConfigError for sizes that do not fit the codes, CatalogError without media to judge on, TokenizerLoadError.
    """
    name = config.tokenize.model
    factor = weights.spatial_factor(name)
    if wrong := [side for side in options.sides_px if side % factor or side < 16]:
        raise ConfigError(f"--sizes {wrong[0]}: {name} codes {factor} x {factor} px; give multiples of it, 16 or more")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = VisionTokenizer.load(name, device, config.tokenize.dtype)
    if not tokenizer.decodes:
        raise ConfigError(f"tokenize.model={name}: encodes only, there are no reconstructions to judge")
    perceptual = _perceptual(options, device)
    media = _media(config, options, console)
    squares = Squares(list(options.sides_px), config.fetched)
    found = Evaluation(name, tokenizer.identity, tokenizer.codebook_size, device, str(options.folder or ""))
    for kind in ("image", "video"):
        limit = options.num_images if kind == "image" else max(1, round(options.num_images * _CLIPS_PER_IMAGE))
        of_kind = [medium for medium in media if medium.kind == kind]
        if kind == "video" and of_kind and not tokenizer.codes_clips:
            found.notes.append(f"{len(of_kind)} clips are not judged: {name} codes images only")
        elif of_kind:
            judges = {side: Judge(tokenizer, kind, side, *perceptual[side]) for side in options.sides_px}
            _judge(judges, kind, _loaded(squares, of_kind, limit, console), found)
    if left_out := [f"{reason} {count}" for reason, count in sorted(squares.left_out.items()) if count]:
        found.notes.append("left out: " + ", ".join(left_out))
    if not found.rows:
        raise CatalogError(
            f"none of {len(media)} media can be judged ({found.notes[-1] if found.notes else 'no image or video'}); "
            "pass smaller --sizes or other media"
        )
    write(found, options.out)
    show(found, options.out, console)
    return found.document()


def _media(config: RunConfig, options: EvalOptions, console: Console) -> list[Medium]:
    if options.folder is None:
        return from_catalog(kept_media(config, "tokenizer eval", console))
    if not options.folder.is_dir():
        raise ConfigError(f"--folder {options.folder}: no such folder; leave it out to judge the catalog's kept media")
    return from_folder(Path(storage.absolute(str(options.folder))))


def _loaded(
    squares: Squares, media: list[Medium], limit: int, console: Console
) -> Iterator[tuple[str, dict[int, np.ndarray]]]:
    """The first `limit` usable media: name, and side -> frames."""
    count = 0
    for medium in media:
        if count == limit:
            return
        if frames := squares.of(medium):
            count += 1
            yield medium.name, frames
            if count % 16 == 0:
                console.print(f"  {count} of at most {limit} {medium.kind}s", highlight=False)


def _perceptual(options: EvalOptions, device: str) -> dict[int, tuple[Any, Any]]:
    """LPIPS and FID of each size, null without weights; FID gathers its own pictures at each."""
    if not options.lpips and not options.fid:
        return dict.fromkeys(options.sides_px, (None, None))
    from tokenmill.tokenizer.vision.evaluation.perceptual import Fid, Lpips, WeightsError

    try:
        lpips = Lpips(options.lpips, device) if options.lpips else None
        return {side: (lpips, Fid(options.fid, device) if options.fid else None) for side in options.sides_px}
    except WeightsError as error:
        raise ConfigError(str(error)) from None


def _judge(
    judges: dict[int, Judge], kind: str, media: Iterator[tuple[str, dict[int, np.ndarray]]], found: Evaluation
) -> None:
    """Judge the media at every size, in batches of one size."""
    waiting: dict[int, list[tuple[str, np.ndarray]]] = {side: [] for side in judges}

    def flush(side: int) -> None:
        batch, waiting[side] = waiting[side], []
        if batch:
            examples = judges[side].add([name for name, _ in batch], np.stack([frames for _, frames in batch]))
            kept = found.examples.setdefault((kind, side), [])
            kept += examples[: NUM_EXAMPLES[kind] - len(kept)]

    for name, sizes in media:
        for side, frames in sizes.items():
            waiting[side].append((name, frames))
            if len(waiting[side]) * frames[..., 0].size >= _BATCH_PX:
                flush(side)
    for side, judge in judges.items():
        flush(side)
        if (kind, side) in found.examples:
            found.rows.append(judge.figures())
