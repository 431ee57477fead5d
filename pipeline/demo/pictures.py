"""Tokens of the demo's corpus -> its pictures and clips beside what their codes decode to."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenmill import stages
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.reports.sheet import Picture, SheetSection
from tokenmill.pipeline.reports.verdict_sheet import square
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer

MEDIA_COLUMNS = stages.PLACES.names
_SHOWN_PER_ROW = 8
_STRIP_FRAMES = 4
_TEXT_PX = 270  # room for three texts


def corpus_sections(config: RunConfig, media: pa.Table, tokens: pa.Table) -> list[SheetSection]:
    """Originals as the tokenizer saw them, their reconstructions, and a few clips as strips of frames, of the first of
    `tokens`; `media` has MEDIA_COLUMNS of them.
    """
    vision = VisionTokenizer.load(config.tokenize.model)
    images = tokens.filter(pc.equal(tokens["kind"], "image")).slice(0, _SHOWN_PER_ROW)
    clips = tokens.filter(pc.equal(tokens["kind"], "video")).slice(0, _SHOWN_PER_ROW // 2)
    originals, captions = _frames(config, media, images), images["caption"].to_pylist()
    rebuilt = [vision.decode_images(_codes(row)) for row in images.to_pylist()]
    made = [
        SheetSection("Originals", [Picture(o[0], c or "") for o, c in zip(originals, captions, strict=True)]),
        SheetSection("Reconstructed from their codes", [Picture(r[0], "") for r in rebuilt]),
    ]
    if clips.num_rows:
        decoded = [vision.decode_clips(_codes(row)[None])[0] for row in clips.to_pylist()]
        pairs = zip(_frames(config, media, clips), decoded, clips["caption"].to_pylist(), strict=True)
        strips = [Picture(np.concatenate([_strip(o), _strip(r)]), c or "") for o, r, c in pairs]
        made.append(SheetSection("Clips: original above, reconstruction below", strips))
    return made


def caption_section(
    config: RunConfig,
    media: pa.Table,
    scenes: Mapping[str, str],
    written: Mapping[str, str | None],
    true: Mapping[str, str],
) -> SheetSection:
    """A few of `scenes`, name of a file -> media_id, with what was written of them; one is wrong where any is."""
    names = sorted(written)
    wrong = [name for name in names if written[name] != true[name]]
    chosen = [name for name in names if written[name] == true[name]][: _SHOWN_PER_ROW - len(wrong[:1])] + wrong[:1]
    by_id = {row["media_id"]: row for row in media.to_pylist()}
    places = stages.Places(config.fetched)
    pictures = [
        Picture(square(by_id[scenes[name]], places), written[name] or "(nothing)", written[name] == true[name])
        for name in chosen
    ]
    right = len(names) - len(wrong)
    title = f"Captions by a captioner that learned from a quarter of the source's: {right:,} of {len(names):,} right"
    return SheetSection(title, pictures)


def joined_section(
    config: RunConfig,
    media: pa.Table,
    scenes: Mapping[str, str],
    seen: Mapping[str, str | None],
    joined: Mapping[str, str | None],
    true: Mapping[str, str],
) -> SheetSection:
    """A few of `scenes` of which a web page says something: that, what was seen, and what joining them gave."""
    names = sorted(true, key=lambda name: (joined.get(name) == true[name], name))
    wrong = [name for name in names if joined.get(name) != true[name]]
    chosen = [*wrong[:1], *(name for name in names if name not in wrong)][: _SHOWN_PER_ROW // 2]
    by_id = {row["media_id"]: row for row in media.to_pylist()}
    places = stages.Places(config.fetched)
    shown = []
    for name in chosen:
        row = by_id[scenes[name]]
        page = json.loads(row["metadata"])["alt"]
        texts = (f"page: {page}", f"seen: {seen.get(name)}", f"joined: {joined.get(name) or '(nothing)'}")
        tile = square(row, places)
        wide = np.pad(tile, ((0, 0), (0, _TEXT_PX - tile.shape[1]), (0, 0)), constant_values=255)
        shown.append(Picture(wide, texts, joined.get(name) == true[name]))
    right = len(names) - len(wrong)
    title = f"What a page says and what was seen, joined by a language model: {right} of {len(names)} right"
    return SheetSection(title, shown)


def _codes(row: dict[str, Any]) -> np.ndarray:
    """(1, h, w) of an image, (t, h, w) of a clip."""
    return np.array(row["codes"], np.int64).reshape(row["grid_t"], row["grid_h"], row["grid_w"])


def _frames(config: RunConfig, media: pa.Table, tokens: pa.Table) -> list[np.ndarray]:
    """uint8 (T, H, W, 3) of each row, as the tokenizer got them."""
    at = pc.index_in(tokens["media_id"], value_set=media["media_id"].combine_chunks())
    rows = media.take(at).append_column("caption", tokens["caption"])
    loaded = stages.LoadFrames(config.tokenize.frames, config.tokenize.model, config.fetched)(rows).to_pylist()
    shapes = [(row["frames_t"], row["frames_h"], row["frames_w"], 3) for row in loaded]
    return [np.frombuffer(row["frames"], np.uint8).reshape(shape) for row, shape in zip(loaded, shapes, strict=True)]


def _strip(frames_THWC: np.ndarray) -> np.ndarray:
    at = np.linspace(0, len(frames_THWC) - 1, _STRIP_FRAMES).round().astype(int)
    return np.concatenate(list(frames_THWC[at]), axis=1)
