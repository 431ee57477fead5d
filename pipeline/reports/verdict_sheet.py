"""`tokenmill sheet`: the media of one verdict as a contact sheet, each with the scores that the rules read.

Media are read where they are, a clip by its middle frame; one that cannot be drawn (that is often why it was rejected)
is a grey tile with its reason.
"""

import re
from collections import Counter
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from tokenmill import stages
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.reports.sheet import Picture, SheetSection, contact_sheet, write_picture

KEPT = "kept"
_SIDE_PX = 176
_NAME_CHARS = 26
_MAX_PIXELS = 400_000_000
_GREY = 212


def draw_verdict(
    config: RunConfig, reason: str, kind: str | None, limit: int, seed: int, uri: str, console: Console
) -> None:
    """Draw up to `limit` media, chosen by `seed`, whose verdict is `reason`, into `uri`.

    A verdict is a reject_reason, `near` or `semantic` (another medium stands for it), or `kept`.

    Raises CatalogError where there are none; the message names the verdicts that there are.
    """
    catalog = Catalog(config.root, config.version)
    if not catalog.exists():
        raise CatalogError(f"{catalog.root}: no catalog there yet; run `tokenmill curate CONFIG` first")
    media = catalog.media.scan(where=None if kind is None else pc.field("kind") == kind)
    duplicates = catalog.duplicates.scan(["media_id", "duplicate_of", "method"], pc.field("method") != KEPT)
    at = pc.index_in(media["media_id"], value_set=duplicates["media_id"].combine_chunks())
    verdicts = pc.coalesce(media["reject_reason"], duplicates["method"].take(at), pa.scalar(KEPT))
    media = media.append_column("duplicate_of", duplicates["duplicate_of"].take(at))
    chosen = media.filter(pc.equal(verdicts, reason)).sort_by("media_id")
    if not chosen.num_rows:
        there = ", ".join(f"{name} ({count})" for name, count in Counter(verdicts.to_pylist()).most_common())
        raise CatalogError(f"no medium has the verdict {reason!r}; there are: {there or 'none at all'}")
    picked = np.sort(np.random.default_rng(seed).permutation(chosen.num_rows)[:limit])
    rows = chosen.take(pa.array(picked)).to_pylist()
    rules = {"image": config.curate.decide.image_rules, "video": config.curate.decide.video_rules}
    names = {of: _columns(each, media.schema) for of, each in rules.items()}
    places = stages.Places(config.fetched)
    pictures = [Picture(square(row, places), _text(row, names.get(row["kind"], []))) for row in rows]
    title = f"{reason}: {len(rows)} of {chosen.num_rows}"
    write_picture(uri, lambda local: contact_sheet([SheetSection(title, pictures)], local))
    console.print(f"{title}; look at {uri}", highlight=False)


def _columns(rules: dict[str, str], schema: pa.Schema) -> list[str]:
    return list(
        dict.fromkeys(column for name, keep in rules.items() for column in stages.Rule(name, keep, schema).columns)
    )


def _text(row: dict[str, Any], names: list[str]) -> str:
    said = row["reject_detail"] or ""
    first = sorted(names, key=lambda name: not re.search(rf"\b{name}\b", said))  # what its rule reads
    scores = ", ".join(f"{name} {row[name]:.4g}" for name in first if isinstance(row[name], int | float))
    name = (row["member"] or row["uri"]).rsplit("/", 1)[-1]
    name = name if len(name) <= _NAME_CHARS else f"\u2026{name[1 - _NAME_CHARS :]}"
    stands_aside = f" | copy of {row['duplicate_of'][:8]}" if row["duplicate_of"] else ""
    return f"{name}{stands_aside} | {scores or row['reject_detail'] or ''}"


def square(row: dict[str, Any], places: stages.Places) -> np.ndarray:
    """uint8 (_SIDE_PX, _SIDE_PX, 3): the medium on white, or a grey tile."""
    tile = np.full((_SIDE_PX, _SIDE_PX, 3), 255, np.uint8)
    try:
        rgb = _clip(row, places) if row["kind"] == "video" else _image(row, places)
    except (stages.RowError, OSError, ValueError, pa.ArrowException):
        tile[:] = _GREY
        return tile
    scale = _SIDE_PX / max(rgb.shape[:2])
    height, width = (max(1, round(side * scale)) for side in rgb.shape[:2])
    small = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    top, left = (_SIDE_PX - height) // 2, (_SIDE_PX - width) // 2
    tile[top : top + height, left : left + width] = small
    return tile


def _image(row: dict[str, Any], places: stages.Places) -> np.ndarray:
    return stages.Picture(places.read(row), _MAX_PIXELS).rgb(at_least_px=_SIDE_PX)


def _clip(row: dict[str, Any], places: stages.Places) -> np.ndarray:
    if row["start_s"] is None or row["end_s"] is None:
        raise ValueError("no span")
    with places.local_file(row) as path, stages.Video(path, _MAX_PIXELS) as video:
        return video.upright(next(stages.frames_at(video, [(row["start_s"] + row["end_s"]) / 2])))
