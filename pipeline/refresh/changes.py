"""The sources beside the `sources` table: which objects are new, changed, gone, or measured by another config."""

from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill import storage
from tokenmill.pipeline.catalog import sql
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.refresh.arrow import NO_IDS, count, distinct, is_in
from tokenmill.pipeline.refresh.sources import LISTING, Listing

# Objects that are new, or of which something differs. One member to measure anew makes its container one to read; the
# others are known.
_DIFFERENT = """
with old as (select uri, etag, file_id, caption_etag from {present} where member is null),
stale as (select distinct uri from {present} where fingerprint <> $fingerprint),
compared as (
    select l.*, o.file_id, o.uri is null as is_new, s.uri is not null as is_stale,
        coalesce(l.etag <> o.etag, false) as has_other_etag, l.caption_etag is distinct from o.caption_etag
        as has_other_caption
    from listed l left join old o on l.uri = o.uri left join stale s on l.uri = s.uri)
select * from compared where is_new or is_stale or has_other_etag or has_other_caption
    or (container is not null and file_id is not null)"""
_GONE = "select distinct uri from {present} where member is null and uri not in (select uri from listed)"


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

    @property
    def differ(self) -> bool:
        """Whether anything is other than recorded."""
        return bool(self.todo.num_rows or self.recaptioned.num_rows or len(self.gone))


def source_changes(listing: Listing, catalog: Catalog, fingerprint: str) -> SourceChanges:
    """Compare a listing with the `sources` table; `fingerprint` is the one that rows should have. The memory that it
    takes follows what differs.
    """
    present = "(select * from sources where status = 'present')"
    listed = listing.rows.source()
    found = sql.ask_catalog(catalog, _DIFFERENT.format(present=present), {"fingerprint": fingerprint}, listed=listed)
    rows = found.select(LISTING.names).cast(LISTING)
    old = found.select(["file_id"])
    is_new, is_stale = found["is_new"], found["is_stale"]
    is_changed = pc.or_(found["has_other_etag"], _is_opened(rows, old, catalog))
    is_todo = pc.or_(is_new, pc.or_(is_changed, is_stale))
    only_caption = pc.and_(pc.invert(is_todo), found["has_other_caption"])
    todo = rows.filter(is_todo).sort_by("uri")
    num_new, num_changed = count(is_new), count(is_changed)
    remeasured = _no_runs()
    if pc.any(is_stale).as_py():
        of_stale = (pc.field("status") == "present") & (pc.field("fingerprint") != fingerprint)
        stale = catalog.sources.scan(["uri", "fingerprint", "last_seen_run"], of_stale)
        remeasured = stale.filter(is_in(stale["uri"], todo["uri"])).select(["fingerprint", "last_seen_run"])
    gone = sql.ask_catalog(catalog, _GONE.format(present=present), listed=listed)["uri"].combine_chunks()
    return SourceChanges(
        todo=todo,
        num_listed=listing.rows.num_rows,
        num_new=num_new,
        changed=distinct(rows.filter(is_changed)["uri"]),
        num_remeasured=todo.num_rows - num_new - num_changed,
        remeasured=remeasured,
        recaptioned=rows.filter(only_caption).sort_by("uri"),
        gone=_seen(gone.sort(), listing.unseen),
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
