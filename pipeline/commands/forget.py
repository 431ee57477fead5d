"""`tokenmill forget`: media leave every table, every past version and every export, and never come back.

What remains is the list of pipeline/catalog/forgotten.py. It is written first: whatever is interrupted after that is
completed by the same command, or by the next run, which drops what the list names.
"""

import time
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.export_registry import exports
from tokenmill.pipeline.catalog.fetched import delete_fetched
from tokenmill.pipeline.catalog.forgotten import Forgotten, drop_forgotten, place
from tokenmill.pipeline.catalog.lease import held, new_run_id
from tokenmill.pipeline.catalog.records import write_record
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError, Table
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.export.again import export_again
from tokenmill.stages.caption.journal import clear_all_answers
from tokenmill.storage import object_store


def forget(config: RunConfig, keys: Iterable[str], console: Console) -> None:
    """Forget the media with these ids (of a medium or a file, whole) or uris. Raises CatalogError for unknown keys."""
    catalog = Catalog(config.root)
    if not catalog.exists():
        raise CatalogError(f"{catalog.root}: no catalog there; nothing was forgotten")
    run_id = new_run_id()
    with held(catalog, run_id, "forget"):
        forgotten = Forgotten.load(catalog.root)
        _name(catalog, list(dict.fromkeys(keys)), forgotten)
        clear_all_answers(catalog.root)  # whose, stands in none of them
        forgotten.save()
        counts = drop_forgotten(catalog, forgotten, run_id)
        num_files = sum(_delete_files(table, forgotten.id_array()) for table in catalog)
        if storage.is_remote(catalog.root):
            object_store.drop_uploads(catalog.root, time.time(), dry_run=False)
        delete_fetched(config.fetched, forgotten.ids)
        write_record(catalog, config, run_id, "forget", [])
    rows = ", ".join(f"{name} {count}" for name, count in counts.items())
    console.print(f"Rows removed: {rows}; {num_files} files of past versions deleted", highlight=False)
    _clear_exports(config, catalog.root, console)
    trained = storage.list_names(storage.join(catalog.root, "training"))
    if trained:
        console.print(
            f"Models trained before may have seen them: {', '.join(trained)}; train anew to be rid of that",
            style="yellow",
            highlight=False,
        )


def _name(catalog: Catalog, keys: list[str], forgotten: Forgotten) -> None:
    """Put the ids and places that `keys` stand for on the list."""
    sources = catalog.sources.scan(["uri", "member", "etag", "file_id"])
    media = catalog.media.scan(["media_id", "file_id", "uri"])
    asked = pa.array(keys, pa.string())
    by_source = pc.or_(pc.is_in(sources["uri"], value_set=asked), pc.is_in(sources["file_id"], value_set=asked))
    by_source = pc.or_(by_source, pc.is_in(sources["member"], value_set=asked))
    by_medium = pc.or_(pc.is_in(media["uri"], value_set=asked), pc.is_in(media["file_id"], value_set=asked))
    files = set(sources.filter(pc.fill_null(by_source, False))["file_id"].to_pylist())
    files |= set(media.filter(pc.fill_null(by_medium, False))["file_id"].to_pylist())
    clips = set(media.filter(pc.is_in(media["media_id"], value_set=asked))["media_id"].to_pylist())
    places = set(sources["uri"].to_pylist()) | set(sources["member"].to_pylist()) | set(media["uri"].to_pylist())
    known = files | clips | places | forgotten.ids
    if unknown := [key for key in keys if key not in known]:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise CatalogError(
            f"{catalog.root}: {len(unknown)} of {len(keys)} are no known id or uri: {shown}; nothing was forgotten. "
            "`tokenmill show CONFIG KEY` finds media"
        )
    forgotten.ids |= files | clips
    met = sources.filter(pc.is_in(sources["file_id"], value_set=pa.array(sorted(files), pa.string())))
    forgotten.places |= {place(row["uri"], row["etag"]) for row in met.to_pylist() if row["member"] is None}


def _delete_files(table: Table, ids: pa.Array) -> int:
    """Delete the files of past versions, and orphans, that hold one of `ids` or cannot be read, as a killed writer left
    them; returns how many.
    """
    current = {uri.rsplit("/", 1)[1] for uri in table.files()}
    columns = [name for name in ("media_id", "file_id") if name in table.schema.names]
    deleted = 0
    for name in storage.list_names(table.uri):
        if not name.endswith(".parquet") or name in current:
            continue
        filesystem, path = storage.filesystem(storage.join(table.uri, name))
        try:
            with filesystem.open_input_file(path) as file:
                rows = pq.read_table(file, columns=columns)
        except pa.ArrowInvalid:
            rows = None
        if rows is None or any(pc.any(pc.is_in(rows[column], value_set=ids)).as_py() for column in columns):
            filesystem.delete_file(path)
            deleted += 1
    return deleted


def _clear_exports(config: RunConfig, root: str, console: Console) -> None:
    """Bring every recorded export to the newest version, without what is kept no more."""
    for entry in exports(root):
        kind, uri = entry["kind"], entry["uri"]
        if not storage.exists(uri):
            continue
        try:
            export_again(config, kind, uri, console)
        except CatalogError as error:
            console.print(f"{uri}: {error}; delete this folder by hand", style="red", markup=False, highlight=False)
