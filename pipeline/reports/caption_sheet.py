"""Media with what each captioner says of them -> one PNG to read: a line for each medium, a column for each captioner.

A caption that does not count has its reason below; the one that training reads has a bar at its side.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from tokenmill import stages
from tokenmill.pipeline.catalog.chosen import chosen_captions
from tokenmill.pipeline.catalog.join import kept_ids
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.reports.sheet import escaped, write_picture
from tokenmill.pipeline.reports.verdict_sheet import square

_COLUMN_PX, _GAP_PX, _MARGIN_PX, _LINE_PX = 300, 20, 24, 17
_FONT = ImageFont.load_default(size=13)
_TITLE = ImageFont.load_default(size=16)
_MAX_LINES = 24
_INK, _FAINT, _WRONG, _USED, _PAPER = (39, 39, 42), (113, 113, 122), (185, 28, 28), (22, 163, 74), (255, 255, 255)


@dataclass(frozen=True)
class Written:
    """What one captioner says of a medium; `reason` where it does not count."""

    text: str
    reason: str | None = None
    is_used: bool = False


@dataclass(frozen=True)
class Line:
    """A medium, uint8 (H, W, 3) RGB, its name, and what is written, by captioner."""

    picture: np.ndarray
    name: str
    written: dict[str, Written]


def draw_lines(lines: Sequence[Line], captioners: Sequence[str], out: Path) -> None:
    """Write the PNG."""
    side_px = max(line.picture.shape[1] for line in lines)
    wraps = [[_wrapped(line.written.get(name)) for name in captioners] for line in lines]
    heights = [
        max(line.picture.shape[0] + _LINE_PX, *(len(wrap) * _LINE_PX for wrap in of), 0) + _GAP_PX
        for line, of in zip(lines, wraps, strict=True)
    ]
    width = 2 * _MARGIN_PX + side_px + len(captioners) * (_COLUMN_PX + _GAP_PX)
    page = Image.new("RGB", (width, 2 * _MARGIN_PX + 2 * _LINE_PX + sum(heights)), _PAPER)
    canvas = ImageDraw.Draw(page)
    lefts = [_MARGIN_PX + side_px + _GAP_PX + i * (_COLUMN_PX + _GAP_PX) for i in range(len(captioners))]
    for left, name in zip(lefts, captioners, strict=True):
        canvas.text((left, _MARGIN_PX), escaped(name), fill=_INK, font=_TITLE)
    top = _MARGIN_PX + 2 * _LINE_PX
    for line, of, height in zip(lines, wraps, heights, strict=True):
        page.paste(Image.fromarray(line.picture), (_MARGIN_PX, top))
        canvas.text((_MARGIN_PX, top + line.picture.shape[0] + 2), escaped(line.name)[-24:], fill=_FAINT, font=_FONT)
        for left, name, wrap in zip(lefts, captioners, of, strict=True):
            written = line.written.get(name)
            for i, text in enumerate(wrap):
                is_reason = written is not None and written.reason is not None and i == len(wrap) - 1
                canvas.text((left, top + i * _LINE_PX), text, fill=_WRONG if is_reason else _INK, font=_FONT)
            if written is not None and written.is_used:
                canvas.rectangle((left - 9, top, left - 6, top + max(1, len(wrap)) * _LINE_PX), fill=_USED)
        top += height
    page.save(out)


def _wrapped(written: Written | None) -> list[str]:
    if written is None:
        return []
    shown = escaped(written.text)
    for num_chars in range(_COLUMN_PX // 5, 10, -1):
        lines = textwrap.wrap(shown, num_chars, max_lines=_MAX_LINES, placeholder=" ...")
        if all(_FONT.getlength(line) <= _COLUMN_PX for line in lines):
            break
    return lines if written.reason is None else [*lines, f"-- {written.reason}"]


def draw_captions(config: RunConfig, kind: str | None, limit: int, seed: int, uri: str, console: Console) -> None:
    """Up to `limit` kept media, chosen by `seed`, with their rows of `captions`. Raises CatalogError without any."""
    catalog = Catalog(config.root, config.version)
    media, _ = some_media(config, kind, limit, seed)
    rows = media.to_pylist()
    ids = pa.array([row["media_id"] for row in rows], pa.string())
    columns = ["media_id", "captioner", "span", "caption", "reject_reason"]
    captions = catalog.captions.scan(columns, pc.field("media_id").isin(ids)).sort_by("span").to_pylist()
    chosen = {row["media_id"]: row["captioner"] for row in chosen_captions(catalog, config.caption.what).to_pylist()}
    found: dict[str, dict[str, Written]] = {}
    for row in captions:
        of, name = found.setdefault(row["media_id"], {}), row["captioner"]
        before = f"{of[name].text} | " if name in of else ""
        is_used = chosen.get(row["media_id"]) == name
        of[name] = Written(before + (row["caption"] or ""), row["reject_reason"], is_used)
    places = stages.Places(config.fetched)
    lines = [Line(square(row, places), _name(row), found.get(row["media_id"], {})) for row in rows]
    names = sorted({name for of in found.values() for name in of}, key=lambda name: (name != "source", name))
    if not names:
        raise CatalogError(f"{catalog.root}: nothing is captioned yet; run `tokenmill caption CONFIG` first")
    write_picture(uri, lambda local: draw_lines(lines, names, local))
    console.print(f"{len(lines)} media, captions by {', '.join(names)}; look at {uri}", highlight=False)


def some_media(config: RunConfig, kind: str | None, limit: int, seed: int) -> tuple[pa.Table, int]:
    """Rows of up to `limit` images and clips that go on, chosen by `seed`, and how many there are. Raises CatalogError
    where there is none.
    """
    catalog = Catalog(config.root, config.version)
    if not catalog.exists():
        raise CatalogError(f"{catalog.root}: no catalog there yet; run `tokenmill curate CONFIG` first")
    kinds = ["image", "video"] if kind is None else [kind]
    media = catalog.media.scan(where=pc.field("kind").isin(kinds)).sort_by("media_id")
    media = media.filter(pc.is_in(media["media_id"], value_set=kept_ids(catalog)))
    if not media.num_rows:
        raise CatalogError(f"{catalog.root}: no medium is kept; `tokenmill status CONFIG` says why")
    picked = np.sort(np.random.default_rng(seed).permutation(media.num_rows)[:limit])
    return media.take(pa.array(picked)), media.num_rows


def _name(row: dict) -> str:
    return (row["member"] or row["uri"]).rsplit("/", 1)[-1]
