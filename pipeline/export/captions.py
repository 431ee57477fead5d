"""`tokenmill export captions`: captions of kept media as lines of JSON, those that training reads or all that count."""

import json

import pyarrow.compute as pc
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.chosen import chosen_captions
from tokenmill.pipeline.catalog.export_registry import remember_export
from tokenmill.pipeline.catalog.join import kept_ids
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import RunConfig

ALL, USED = "captions of all", "captions"  # kinds of exports


def export_captions(config: RunConfig, out: str, of_all: bool, console: Console) -> None:
    """Write the file `out`, a path or s3://. `of_all`: every caption that counts, of whichever captioner.

    Raises CatalogError without a catalog.
    """
    catalog = Catalog(config.root, config.version)
    if not catalog.exists():
        raise CatalogError(f"{catalog.root}: no catalog there yet; run `tokenmill run CONFIG` first")
    media = catalog.media.scan(["media_id", "kind", "uri", "member", "start_s", "end_s"])
    media = media.filter(pc.is_in(media["media_id"], value_set=kept_ids(catalog)))
    used = chosen_captions(catalog, config.caption.what)
    if of_all:
        counts = pc.field("caption").is_valid() & pc.field("reject_reason").is_null()
        rows = catalog.captions.scan(["media_id", "captioner", "model", "caption", "start_s", "end_s"], counts)
    else:
        rows = used
    at = pc.index_in(rows["media_id"], value_set=media["media_id"].combine_chunks())
    rows = rows.filter(pc.is_valid(at))
    places = media.select(["kind", "uri", "member"]).take(at.filter(pc.is_valid(at)))
    for name in places.column_names:
        rows = rows.append_column(name, places[name])
    pairs = set(zip(used["media_id"].to_pylist(), used["captioner"].to_pylist(), strict=True))
    out = storage.absolute(out)
    remember_export(catalog.root, ALL if of_all else USED, out)
    rows = rows.sort_by([("media_id", "ascending"), ("captioner", "ascending")])
    lines = [_line(row, pairs) for row in rows.to_pylist()]
    storage.write_bytes(out, "".join(lines).encode())
    console.print(f"{len(lines):,} captions of {len(pc.unique(rows['media_id'])):,} media: {out}", highlight=False)


def _line(row: dict[str, object], used: set[tuple[str, str]]) -> str:
    known = {name: value for name, value in row.items() if value is not None}
    known["used"] = (row["media_id"], row["captioner"]) in used
    return json.dumps(known, ensure_ascii=False) + "\n"
