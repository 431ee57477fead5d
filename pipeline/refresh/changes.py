"""The sources beside the `sources` table: which objects are new, changed, gone, or measured by another config."""

from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.refresh.arrow import NO_IDS, count, differ, distinct, is_in, without
from tokenmill.pipeline.refresh.sources import LISTING, Listing


def _no_runs() -> pa.Table:
    return pa.table({"fingerprint": NO_IDS, "last_seen_run": NO_IDS})


@dataclass(frozen=True)
class SourceChanges:
    """How the sources differ from what `sources` recorded; without a listing, not at all."""

    # Rows of LISTING to read: new, changed, or measured by another config.
    todo: pa.Table = field(default_factory=LISTING.empty_table)
    num_listed: int = 0
    num_new: int = 0
    changed: pa.Array = field(default_factory=lambda: NO_IDS)  # uris of changed objects
    num_remeasured: int = 0
    remeasured: pa.Table = field(default_factory=_no_runs)  # rows behind `num_remeasured`
    recaptioned: pa.Table = field(default_factory=LISTING.empty_table)  # rows of LISTING whose caption alone changed
    gone: pa.Array = field(default_factory=lambda: NO_IDS)  # uris that are no longer listed


def source_changes(listing: Listing, catalog: Catalog, fingerprint: str) -> SourceChanges:
    """Compare a listing with the `sources` table; `fingerprint` is the one that rows should have."""
    columns = ["uri", "member", "etag", "file_id", "caption_etag", "fingerprint", "last_seen_run"]
    present = catalog.sources.scan(columns, pc.field("status") == "present")
    # One member to measure anew makes its container one to read; the others are known.
    stale = present.filter(pc.not_equal(present["fingerprint"], fingerprint))
    present = present.filter(pc.is_null(present["member"]))
    rows = listing.rows
    old = present.take(pc.index_in(rows["uri"], value_set=present["uri"].combine_chunks()))  # nulls where not known
    is_new = pc.is_null(old["uri"])
    is_changed = pc.or_(pc.fill_null(pc.not_equal(rows["etag"], old["etag"]), False), _is_opened(rows, old, catalog))
    is_todo = pc.or_(is_new, pc.or_(is_changed, is_in(rows["uri"], distinct(stale["uri"]))))
    only_caption = pc.and_(pc.invert(is_todo), differ(rows["caption_etag"], old["caption_etag"]))
    todo = rows.filter(is_todo)
    num_new, num_changed = count(is_new), count(is_changed)
    return SourceChanges(
        todo=todo,
        num_listed=rows.num_rows,
        num_new=num_new,
        changed=distinct(rows.filter(is_changed)["uri"]),
        num_remeasured=todo.num_rows - num_new - num_changed,
        remeasured=stale.filter(is_in(stale["uri"], todo["uri"])).select(["fingerprint", "last_seen_run"]),
        recaptioned=rows.filter(only_caption),
        gone=_seen(without(distinct(present["uri"]), rows["uri"]).sort(), listing.unseen),
    )


def _is_opened(rows: pa.Table, old: pa.Table, catalog: Catalog) -> pa.Array:
    """Which objects were read as a medium and are a container now: another source lists them."""
    opened = pc.and_(pc.is_valid(rows["container"]), pc.is_valid(old["file_id"]))
    if pc.any(opened).as_py():  # or it is a container that could not be read: no medium says `unknown_format` of that
        where = pc.field("uri").isin(rows["uri"].filter(opened)) & (pc.field("reject_reason") == "unknown_format")
        opened = pc.and_(opened, is_in(rows["uri"], distinct(catalog.media.scan(["uri"], where)["uri"])))
    return opened


def _seen(uris: pa.Array, unseen: list[str]) -> pa.Array:
    """Those that do not stand below a folder whose content is not known now."""
    for folder in unseen:
        below = pc.or_(pc.equal(uris, folder), pc.starts_with(uris, storage.join(folder, "")))
        uris = uris.filter(pc.invert(below))
    return uris
