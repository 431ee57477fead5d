"""The figures and examples of `tokenizer eval` -> tables on the terminal, eval.json and two pictures to look at."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.reports.sheet import Picture, SheetSection, contact_sheet, image_grid
from tokenmill.pipeline.reports.terminal import table
from tokenmill.tokenizer.geometry import resize
from tokenmill.tokenizer.vision import evaluation
from tokenmill.tokenizer.vision.evaluation.evaluate import Example
from tokenmill.tokenizer.vision.evaluation.jpeg import Jpeg

NUM_EXAMPLES = {"image": 6, "video": 2}
_PUBLISHED = Path(evaluation.__file__).with_name("published.csv")
_SHEET_SIDE_PX = 256
_STRIP_SIDE_PX = 128
_FIDELITY = (
    ("PSNR", "psnr", ".2f"),
    ("SSIM", "ssim", ".3f"),
    ("LPIPS", "lpips", ".3f"),
    ("FID", "fid", ".2f"),
    ("motion", "motion_psnr", ".2f"),
    ("JPEG PSNR", "jpeg_psnr", ".2f"),
    ("SSIM", "jpeg_ssim", ".3f"),
    ("LPIPS", "jpeg_lpips", ".3f"),
    ("motion", "jpeg_motion_psnr", ".2f"),
    ("bits/px", "jpeg_bpp", ".3f"),
    ("shrunk by", "jpeg_factor", ".1f"),
    ("q1 too big", "jpeg_forced_share", ".0%"),
)
_CODES = (
    ("codes used", "codes_used", ",d"),
    ("share", "share_used", ".1%"),
    ("perplexity", "perplexity", ",.0f"),
    ("bits/code", "bits", ".2f"),
    ("bits/px entropy", "bpp_entropy", ".3f"),
    ("nominal", "bpp_nominal", ".3f"),
    ("encode tokens/s", "encode_tokens_per_s", ",.0f"),
    ("decode", "decode_tokens_per_s", ",.0f"),
)


@dataclass
class Evaluation:
    """What was found: a row of figures for each kind and size, examples of each, notes."""

    model: str
    identity: str
    codebook_size: int
    device: str
    folder: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    examples: dict[tuple[str, int], list[Example]] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """All numbers, for eval.json."""
        names = ("model", "identity", "codebook_size", "device", "folder", "rows", "notes")
        media = [
            {"kind": kind, "side_px": side, "name": example.name, **example.figures}
            for (kind, side), examples in self.examples.items()
            for example in examples
        ]
        return {name: getattr(self, name) for name in names} | {"examples": media, "published": published()}


def published() -> list[dict[str, str]]:
    """Figures of others with their source; columns as in tokenizer/vision/evaluation/published.csv."""
    with _PUBLISHED.open(newline="") as file:
        return list(csv.DictReader(file))


def write(found: Evaluation, out: Path) -> None:
    """eval.json, reconstructions.png where there are images, clips.png where there are clips; into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    storage.write_json(str(out / "eval.json"), found.document())
    for kind, sections, name in (("image", _triples, "reconstructions.png"), ("video", _strips, "clips.png")):
        (out / name).unlink(missing_ok=True)
        if side := _nearest([side for of, side in found.examples if of == kind], _SHEET_SIDE_PX):
            contact_sheet(sections(found.examples[kind, side], side), out / name)


def show(found: Evaluation, out: Path, console: Console) -> None:
    """Print the tables, the notes, and where to look."""
    title = f"{found.model} ({found.codebook_size:,} codes) against JPEG at its nominal bits per pixel"
    console.print(_table(title, _FIDELITY, found.rows))
    console.print(_table(f"Its codes; speed on this machine's {found.device}", _CODES, found.rows))
    others = table(
        "Published, each on its own media",
        "tokenizer",
        "codes#",
        "patch",
        "on",
        "PSNR#",
        "SSIM#",
        "LPIPS#",
        "FID#",
        "source",
    )
    for row in published():
        numbers = [row[name] or "-" for name in ("psnr", "ssim", "lpips", "fid")]
        others.add_row(row["tokenizer"], row["codes"], row["patch"], row["set"], *numbers, row["source"])
    console.print(others)
    names = {name for row in found.rows for name in row}
    missing = [
        f"{name} with --{name.lower()} {file}"
        for name, file in (("LPIPS", "alexnet-owt-7be5be79.pth"), ("FID", "weights-inception-2015-12-05-6726825d.pth"))
        if name.lower() not in names
    ]
    want = [f"not measured, for want of weights: {', '.join(missing)}"] if missing else []
    for note in found.notes + want:
        console.print(note, highlight=False)
    pictures = " and ".join(str(out / name) for name in ("reconstructions.png", "clips.png") if (out / name).exists())
    console.print(f"Look at {pictures}; all figures in {out / 'eval.json'}", highlight=False)


def _table(title: str, columns: Sequence[tuple[str, str, str]], rows: list[dict[str, Any]]) -> Any:
    """One line a row of figures; a column that no row has is left out."""
    used = [column for column in columns if any(row.get(column[1]) is not None for row in rows)]
    made = table(title, "media", *(f"{heading}#" for heading, _, _ in used))
    for row in rows:
        cells = ["-" if row.get(name) is None else format(row[name], form) for _, name, form in used]
        kind = "images" if row["kind"] == "image" else "clips"
        made.add_row(f"{row['num_media']} {kind}, {row['side_px']} px", *cells)
    return made


def _nearest(sides: list[int], wanted: int) -> int | None:
    return min(sides, key=lambda side: abs(math.log(side / wanted)), default=None)


def _jpeg_name(jpegs: Sequence[Jpeg]) -> str:
    factor = float(np.mean([jpeg.factor for jpeg in jpegs]))
    quality = f"JPEG quality {np.mean([jpeg.quality for jpeg in jpegs]):.0f}"
    return quality if factor == 1 else f"{quality}, shrunk by {factor:.2g}"


def _numbers(figures: dict[str, float], prefix: str) -> str:
    text = f"{figures[prefix + 'psnr']:.1f} dB, SSIM {figures[prefix + 'ssim']:.2f}"
    if f"{prefix}motion_psnr" in figures:
        text += f", motion {figures[prefix + 'motion_psnr']:.1f} dB"
    return text


def _texts(example: Example) -> tuple[str, str, str]:
    figures = example.figures
    jpeg = f"{_jpeg_name(example.jpegs)}: {_numbers(figures, 'jpeg_')}, {figures['jpeg_bpp']:.3f} bits/px"
    return "original", f"tokenizer: {_numbers(figures, '')}, {figures['bpp_nominal']:.3f} bits/px", jpeg


def _triples(examples: list[Example], side: int) -> list[SheetSection]:
    """Original, reconstruction and JPEG of each image side by side, pixel by pixel; the centre of what is too large."""
    sections = []
    for example in examples:
        pictures = example.original[0], example.decoded[0], example.jpegs[0].picture
        shown = [Picture(_centre(picture), text) for picture, text in zip(pictures, _texts(example), strict=True)]
        sections.append(SheetSection(f"{example.name}, {side} px", shown))
    return sections


def _centre(picture: np.ndarray) -> np.ndarray:
    margin = max(0, len(picture) - 384) // 2  # three of 384 px fit a line
    return picture[margin : len(picture) - margin, margin : len(picture) - margin]


def _strips(examples: list[Example], side: int) -> list[SheetSection]:
    """Each clip's frames in three rows: original, reconstruction, JPEG; at most 128 px a frame."""
    sections = []
    for example in examples:
        rows = [list(example.original), list(example.decoded), [jpeg.picture for jpeg in example.jpegs]]
        shown = [
            Picture(np.asarray(image_grid([_small(frame) for frame in row], len(row))), text)
            for row, text in zip(rows, _texts(example), strict=True)
        ]
        sections.append(SheetSection(f"{example.name}, {side} px, 8 frames at 12 a second", shown))
    return sections


def _small(frame: np.ndarray) -> np.ndarray:
    return frame if len(frame) <= _STRIP_SIDE_PX else resize(frame, (_STRIP_SIDE_PX, _STRIP_SIDE_PX))
