"""All that is known of one medium: its rows, captions with what differs between them, and how versions had it."""

import difflib
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from tokenmill import stages
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.catalog.versions import runs
from tokenmill.pipeline.looking.query import Tables

if TYPE_CHECKING:  # imported when codes are first decoded: it takes seconds
    from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer

_HIDDEN = {"embedding", "codes", "metadata"}
_VERSIONS = 8


def known(tables: Tables, media_id: str) -> dict[str, Any] | None:
    """Rows by table, without what is long; captions in words, each with whether it stands in the first one too."""
    media = tables.rows("select * exclude (embedding) from judged where media_id = ?", media_id)
    if not media:
        return None
    captions = tables.rows(
        "select * from captions where media_id = ? order by captioner <> 'source', captioner, span", media_id
    )
    tokens = tables.rows("select * exclude (codes), len(codes) as num_codes from tokens where media_id = ?", media_id)
    sources = tables.rows("select * from sources where file_id = ?", media[0]["file_id"])
    copies = tables.rows("select * from duplicates where media_id = ? or duplicate_of = ? limit 40", media_id, media_id)
    first = next((row["caption"] for row in captions if row["caption"]), None)
    return {
        "row": media[0],
        "tables": {
            "media": [_plain(row) for row in media],
            "sources": [_plain(row) for row in sources],
            "tokens": [_plain(row) for row in tokens],
            "captions": [_plain(row) for row in captions],
        },
        "copies": [row for row in copies if row["method"] != stages.KEPT],
        "captions": [row | {"words": _marked(first, row["caption"])} for row in captions if row["caption"]],
        "has_tokens": any(row["reject_reason"] is None and row["num_codes"] for row in tokens),
        "metadata": media[0]["metadata"],
    }


def history(catalog: Catalog, media_id: str) -> list[dict[str, Any]]:
    """How the newest versions had it, newest first: its verdict, its caption in the tokens; what a version cannot say
    any more is left out.
    """
    found: list[dict[str, Any]] = []
    for run in runs(catalog)[::-1][:_VERSIONS]:
        try:
            at = Catalog(catalog.root, run["version"], as_committed=True)
            media = at.media.scan(["reject_reason"], pc.field("media_id") == media_id).to_pylist()
            tokens = at.tokens.scan(["caption", "run_id"], pc.field("media_id") == media_id).to_pylist()
        except CatalogError:
            continue
        verdict = "not there" if not media else media[0]["reject_reason"] or stages.KEPT
        entry = {"version": run["version"], "run": run["run_id"], "command": run["command"], "verdict": verdict}
        entry["caption"] = tokens[0]["caption"] if tokens else None
        if not found or found[-1]["version"] != entry["version"]:
            found.append(entry)
    return found


def rebuilt(tables: Tables, tokenizer: str, media_id: str) -> np.ndarray | None:
    """Frames uint8 (T, H, W, 3) that the vision tokenizer of that name makes of its codes; null without codes."""
    rows = tables.rows(
        "select kind, codes, grid_t, grid_h, grid_w from tokens where media_id = ? and reject_reason is null limit 1",
        media_id,
    )
    if not rows or not rows[0]["codes"]:
        return None
    row = rows[0]
    grid = (row["grid_t"], row["grid_h"], row["grid_w"])
    return frames_of(tokenizer, row["codes"], grid, is_clip=row["kind"] == "video")


def frames_of(tokenizer: str, codes: list[int], grid: tuple[int | None, int, int], is_clip: bool) -> np.ndarray | None:
    """Frames uint8 (T, H, W, 3) RGB of codes in row-major order; null where that vision tokenizer does not decode."""
    vision = _vision(tokenizer)
    if not vision.decodes:
        return None
    laid = np.array(codes, np.int64).reshape(grid[0] or 1, *grid[1:])
    return vision.decode_clips(laid[None])[0] if is_clip else vision.decode_images(laid)


@cache
def _vision(name: str) -> "VisionTokenizer":
    from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer

    return VisionTokenizer.load(name)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None and name not in _HIDDEN}


def _marked(first: str | None, text: str) -> list[tuple[str, bool]]:
    """Its words, and whether each is another than in the first caption."""
    words, others = text.split(), (first or "").split()
    is_same = [False] * len(words)
    for block in difflib.SequenceMatcher(None, others, words, autojunk=False).get_matching_blocks():
        is_same[block.b : block.b + block.size] = [True] * block.size
    return [(word, not same) for word, same in zip(words, is_same, strict=True)]
