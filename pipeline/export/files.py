"""`tokenmill export images|clips`: kept media as files, for whoever wants files, with their captions beside them.

Images are copied byte for byte. Clips are encoded anew, frame by frame in the order and at the times of presentation,
upright and without sound: a copied stream would start at a key frame, not at the cut. The folder is itself a source of
ours: `captions.jsonl` names file, caption, id, and where the medium came from. A second export writes what is missing.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from tokenmill import stages, storage
from tokenmill.pipeline.catalog.chosen import chosen_captions
from tokenmill.pipeline.catalog.export_registry import remember_export
from tokenmill.pipeline.catalog.join import kept_ids
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import CAPTIONS_NAME, RunConfig
from tokenmill.pipeline.export.media import copy_image, cut_clips
from tokenmill.pipeline.reports.terminal import Meter, PhaseReport

_READERS = 8
_DESCRIBED = ("kind", "format", "fps", "width_px", "height_px", "duration_s", "size_bytes", "metadata")
_EXTENSIONS = {"jpeg": "jpg", "tiff": "tif", "jpeg2000": "jp2"}


def export_media(config: RunConfig, kind: str, out: str, prune: bool, console: Console) -> None:
    """Write the kept media of `kind`, image or video, that are no duplicates, under `out` (a folder or s3://).

    Files of media that are kept no more are named, and deleted with `prune`. Raises CatalogError without a catalog.
    """
    catalog, rows = kept_media(config, (kind,))
    out = storage.absolute(out)
    remember_export(catalog.root, kind, out)
    there = set(storage.list_names(out)) if storage.exists(out) else set()
    todo = [row for row in rows if row["file"] not in there]
    report = PhaseReport("export")
    with Meter(console, report, len(todo), "images" if kind == "image" else "clips") as meter:
        failed = _export(todo, kind, out, config.fetched, lambda: meter.arrived(1))
    lost = {row["media_id"] for row, _ in failed}
    lines = [_line(row) for row in rows if row["media_id"] not in lost]
    storage.write_bytes(storage.join(out, CAPTIONS_NAME), "".join(lines).encode())
    gone = sorted(there - {row["file"] for row in rows} - {CAPTIONS_NAME})
    if prune:
        for name in gone:
            storage.delete_file(storage.join(out, name))
    console.print(
        f"{len(todo) - len(failed)} written, {len(rows) - len(todo)} there already, {len(failed)} failed, "
        f"{len(gone)} of media kept no more{' deleted' if prune else ' (--prune deletes them)' if gone else ''}: {out}",
        highlight=False,
    )
    for reason, count in Counter(reason for _, reason in failed).most_common():
        console.print(f"  {count} x {reason}", style="yellow", highlight=False, markup=False)


def kept_media(config: RunConfig, kinds: Sequence[str]) -> tuple[Catalog, list[dict[str, Any]]]:
    """The catalog, and its kept media of these kinds that are no duplicates, by id: PLACES, what describes them, the
    caption that training reads, and `file`, a name. Raises CatalogError without a catalog.
    """
    catalog = Catalog(config.root, config.version)
    if not catalog.exists():
        raise CatalogError(f"{catalog.root}: no catalog there yet; run `tokenmill curate CONFIG` first")
    where = pc.field("reject_reason").is_null() & pc.field("kind").isin(list(kinds))
    media = catalog.media.scan([*dict.fromkeys((*stages.PLACES.names, *_DESCRIBED))], where)
    media = media.filter(pc.is_in(media["media_id"], value_set=kept_ids(catalog))).sort_by("media_id")
    captions = chosen_captions(catalog, config.caption.what)
    at = pc.index_in(media["media_id"], value_set=captions["media_id"].combine_chunks())
    rows = media.append_column("caption", captions["caption"].take(at)).to_pylist()
    for row in rows:
        row["file"] = f"{row['media_id']}.{_extension(row['kind'], row['format'])}"
    return catalog, rows


def opened(
    rows: list[dict[str, Any]],
    fetched: str,
    use: Callable[[list[dict[str, Any]], stages.Places], list[tuple[dict[str, Any], str]]],
) -> list[tuple[dict[str, Any], str]]:
    """What `use` does with the file of these rows; those that failed, with why."""
    try:
        return use(rows, stages.Places(fetched))
    except stages.RowError as rejected:
        return [(row, rejected.columns["reject_reason"]) for row in rows]
    except (OSError, pa.ArrowException) as error:
        return [(row, stages.words(error)) for row in rows]


def _extension(kind: str, name: str) -> str:
    return "mp4" if kind == "video" else _EXTENSIONS.get(name, name)


def _line(row: dict[str, Any]) -> str:
    names = ("file", "caption", "media_id", "uri", "member", "start_s", "end_s")
    return json.dumps({name: row[name] for name in names if row[name] is not None}) + "\n"


def _export(
    rows: list[dict[str, Any]], kind: str, out: str, fetched: str, on_one: Callable[[], None]
) -> list[tuple[dict[str, Any], str]]:
    """Write the files; returns the rows that failed, with the reason."""
    by_file: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_file[row["file_id"]].append(row)

    def one(mine: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
        write = copy_image if kind == "image" else cut_clips
        return opened(mine, fetched, lambda rows, places: write(rows, out, places))

    failed = []
    with ThreadPoolExecutor(_READERS if kind == "image" else 1) as readers:
        for mine, found in zip(by_file.values(), readers.map(one, by_file.values()), strict=True):
            failed += found
            for _ in mine:
                on_one()
    return failed
