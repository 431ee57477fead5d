"""What stands at a place -> a commented config that fits: its sources, rules for the kinds of media that are there, and
sizes for a laptop.
"""

import os
import statistics
from dataclasses import dataclass

import yaml

from tokenmill import storage
from tokenmill.pipeline.refresh.sources import ENDINGS
from tokenmill.pipeline.start.there import Container, There

_NAMED_SINGLY = 20
_USUAL_SIDE_PX = 128
_LEAST_SIDE_PX = 16


@dataclass(frozen=True)
class Fitted:
    """A source as it stands in the config; `is_on` false: as a comment, since it would add what was not asked for."""

    uri: str
    kind: str
    why: str
    is_on: bool = True


def sources_for(there: There) -> list[Fitted]:
    """What reads all that was found, media first. Empty where nothing is readable."""
    found: list[Fitted] = []
    if there.files["image"] or there.files["video"]:
        found.append(Fitted(there.uri, "files", _captions_of(there)))
    by_kind = {kind: [each for each in there.all_containers if each.kind == kind] for kind in ENDINGS}
    if tars := by_kind["webdataset"]:
        found.append(Fitted(_place(there, tars), "webdataset", "tars of media, with .txt and .json of the same key"))
    if tables := by_kind["parquet"]:
        found += _tabular(there, "parquet", tables, "tables with a column of bytes", is_on=True)
    is_first = not found
    note = "" if is_first else "; beside media they are often no source: uncomment what should be one"
    if lists := by_kind["urls"]:
        found += _tabular(there, "urls", lists, f"lists of URLs, each fetched once{note}", is_first)
    if texts := by_kind["text"]:
        found += _tabular(there, "text", texts, f"documents, the language share of training{note}", is_first)
    return found


def _captions_of(there: There) -> str:
    said = []
    if there.sidecars:
        said.append(f"{len(there.sidecars)} captions in .txt beside the media")
    if there.caption_lists:
        said.append(f"captions from {len(there.caption_lists)} captions.jsonl")
    return "searched recursively; " + (" and ".join(said) or "no captions found: photo.txt beside photo.jpg is one")


def _tabular(there: There, kind: str, tables: list[Container], why: str, is_on: bool) -> list[Fitted]:
    """The folder of these tables where a source of the kind opens nothing else there, or each by its name."""
    folder = _place(there, tables)
    mine = {each.uri for each in tables}
    others = [*(each.uri for each in there.all_containers), *there.sidecars, *there.caption_lists]
    alone = not any(
        uri.startswith(f"{folder}/") and uri.lower().endswith(ENDINGS[kind]) for uri in others if uri not in mine
    )
    if alone:
        return [Fitted(folder, kind, why, is_on)]
    more = f"; {len(tables) - _NAMED_SINGLY} more are not named here" if len(tables) > _NAMED_SINGLY else ""
    return [Fitted(each.uri, kind, why + more, is_on) for each in tables[:_NAMED_SINGLY]]


def _place(there: There, containers: list[Container]) -> str:
    """The deepest folder that holds them all; where only a part was listed, the place itself, which holds the rest."""
    if not there.is_all or containers[0].uri == there.uri:
        return there.uri
    shared = os.path.commonprefix([each.uri.rpartition("/")[0].split("/") for each in containers])
    return "/".join(shared)


def least_side_px(there: There) -> int:
    """The usual limit, or where more than half of the pictures looked at are smaller, one that keeps most of them."""
    sides = there.short_sides_px
    if not sides or statistics.median(sides) >= _USUAL_SIDE_PX:
        return _USUAL_SIDE_PX
    half = max(_LEAST_SIDE_PX, int(statistics.median(sides)) // 2)
    return 1 << (half.bit_length() - 1)


def config_text(there: There, sources: list[Fitted], root: str, schema: str) -> str:
    """The YAML, with a comment on every part that a newcomer may want to change."""
    has_images, has_videos = there.has("image"), there.has("video")
    side_px = least_side_px(there)
    area_px = min(16_384, max(1_024, side_px * side_px))
    grid = int(area_px**0.5) // 8
    lines = [
        f"# yaml-language-server: $schema={schema}",
        f"# Made by `tokenmill init` from a look at {there.uri}",
        "# `tokenmill run FILE --plan` says what a run would do, `tokenmill doctor FILE` what it lacks. All keys and",
        "# their defaults: docs/reference.md.",
        f"root: {_scalar(root)}    # tables, models and reports; or s3://bucket/prefix",
        "sources:",
        *_source_lines(sources),
        "",
        "curate:",
        "  decide:",
        "    # Each rule says what is kept; the first that does not hold is the reason of a rejection. Scores are",
        "    # stored: change a threshold and run again, and no file is read. `tokenmill report FILE` shows them.",
    ]
    if has_images:
        lines += [
            "    image_rules:",
            f"      large_enough: min(width_px, height_px) >= {side_px}",
            "      not_too_long: aspect <= 5          # longer side to shorter",
            "      not_flat: contrast >= 8            # standard deviation of the luma, 0..127",
            "      sharp: sharpness >= 20             # variance of the Laplacian; 100 is already strict",
            "      extension_fits: extension_fits     # no JPEG called .png",
        ]
    if has_videos:
        lines += [
            "    video_rules:",
            "      large_enough: min(width_px, height_px) >= 128",
            "      long_enough: duration_s >= 1       # of a clip, cut where the scene changes",
            "      moves: flow >= 0.001               # mean optical flow",
            "      does_not_flash: flicker <= 40",
        ]
    if not (has_images or has_videos):
        lines += [
            "    text_rules:",
            "      long_enough: size_bytes >= 200",
        ]
    lines += [
        "  # duplicates: {near_radius: 6}         # near duplicates too, not only equal files (docs/deduplicate.md)",
        "  # text: {}                             # finds text in pictures, for rules on text_area; slow on a CPU",
        "",
        "# Captions come with the media. A model writes them with (docs/caption.md):",
        "# caption:",
        "#   use: [source, mine]",
        "#   captioners:",
        "#     mine: {engine: openai, model: NAME, resources: {urls: [http://localhost:8000/v1]}}",
        "",
        "tokenize:",
        "  model: builtin         # small and quick; or BAAI/Emu3-VisionTokenizer, or a folder (docs/tokenize.md)",
        "  frames:",
        f"    area_px: {area_px}       # {int(area_px**0.5)} x {int(area_px**0.5)} pixels, {grid * grid} codes: for a "
        "laptop. Emu3: 262144",
    ]
    if has_videos:
        lines += ["    clip_fps: 4.0", "    max_frames: 16"]
    lines += [
        "",
        "train:                   # a small model, to see the whole line run (docs/train.md)",
        "  data: {context_tokens: 2048, pack_tokens: 4096}",
        "  optimizer: {epochs: 2, warmup_steps: 10}",
        "",
        "sample:",
        f"  grid_h: {grid}",
        f"  grid_w: {grid}",
    ]
    return "\n".join(lines) + "\n"


def _source_lines(sources: list[Fitted]) -> list[str]:
    lines, why = [], ""
    for each in sources:
        mark = "  " if each.is_on else "  # "
        if each.why != why:
            why = each.why
            lines.append(f"  # {why}")
        kind = "" if each.kind == "files" else f", kind: {each.kind}"
        lines.append(f"{mark}- {{uri: {_scalar(each.uri)}{kind}}}")
    return lines


def _scalar(text: str) -> str:
    """A path as YAML inside a flow mapping, on one line whatever it holds."""
    plain = yaml.safe_dump({"u": text}, default_flow_style=True, width=1 << 20, allow_unicode=True)
    return plain.strip().removeprefix("{u: ").removesuffix("}")


def name_of(uri: str) -> str:
    """What a config of the place is called."""
    last = storage.absolute(uri).removeprefix("s3://").rstrip("/").rpartition("/")[2]
    kept = "".join(c if c.isalnum() or c in "-_" else "-" for c in last.partition(".")[0]).strip("-")
    return kept or "tokenmill"
