"""Edits of tables that a plan asks for and no medium is read for. All are idempotent."""

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.chosen import chosen_captions
from tokenmill.pipeline.catalog.tables import Catalog, Table
from tokenmill.pipeline.refresh.arrow import differ, distinct, repeated, set_columns
from tokenmill.pipeline.refresh.changed_keys import REOPENED
from tokenmill.stages import CaptionConfig


def reopen(catalog: Catalog, files: pa.Array, run_id: str) -> None:
    """Send back files, by id: their media stay as they are until they are measured anew (upkeep.py)."""
    if not len(files):
        return

    def reopened(rows: pa.Table) -> pa.Table:
        return set_columns(rows, fingerprint=repeated(REOPENED, rows))

    note = {"run_id": run_id, "what": "scores to fill in"}
    where = pc.field("file_id").isin(files)
    # Sources first: a crash in between reads these files again, and finds their media known.
    catalog.sources.edit(where, reopened, note)
    catalog.media.edit(where, reopened, note)


def mark_gone(catalog: Catalog, uris: pa.Array, run_id: str) -> None:
    """Mark objects that are no longer listed."""
    if not len(uris):
        return

    def gone(rows: pa.Table) -> pa.Table:
        return set_columns(rows, status=repeated("gone", rows), last_seen_run=repeated(run_id, rows))

    catalog.sources.edit(pc.field("uri").isin(uris), gone, {"run_id": run_id, "what": "objects gone"})


def recaption(catalog: Catalog, rows: pa.Table, run_id: str) -> None:
    """Record source captions that changed while their files did not; `reconcile` carries them to the media.

    `rows` are rows of LISTING with `source_caption`.
    """
    if not rows.num_rows:
        return
    uris = rows["uri"].combine_chunks()

    def change(sources: pa.Table) -> pa.Table:
        at = pc.index_in(sources["uri"], value_set=uris)
        return set_columns(sources, caption=rows["source_caption"].take(at), caption_etag=rows["caption_etag"].take(at))

    where = pc.field("uri").isin(uris) & pc.field("member").is_null()
    catalog.sources.edit(where, change, {"run_id": run_id, "what": "source captions changed"})


def superseded(rows: pa.Table, fingerprints: list[str]) -> pa.Table:
    """Those of `rows` (media_id, fingerprint) whose media have a row of a fingerprint that comes earlier in
    `fingerprints`; one that is not among them comes last.
    """
    if not rows.num_rows or pc.all(pc.equal(rows["fingerprint"], fingerprints[0])).as_py():
        return rows.slice(0, 0)
    rank = pc.fill_null(pc.index_in(rows["fingerprint"], value_set=pa.array(fingerprints)), len(fingerprints))
    ranked = pa.table({"media_id": rows["media_id"], "rank": rank})
    best = ranked.group_by("media_id").aggregate([("rank", "min")])
    at = pc.index_in(rows["media_id"], value_set=best["media_id"].combine_chunks())
    return rows.filter(pc.greater(rank, best["rank_min"].take(at)))


def drop_superseded(table: Table, fingerprints: list[str], run_id: str, captioner: str | None = None) -> int:
    """Remove the rows of `tokens`, or of `captions` of one captioner, that others have replaced; returns how many."""
    of = pc.scalar(True) if captioner is None else pc.field("captioner") == captioner
    old = superseded(table.scan(["media_id", "fingerprint"], of), fingerprints)
    num_dropped = 0
    for fingerprint in pc.unique(old["fingerprint"]).to_pylist():
        ids = old.filter(pc.equal(old["fingerprint"], fingerprint))["media_id"].combine_chunks()
        where = (pc.field("fingerprint") == fingerprint) & pc.field("media_id").isin(ids) & of
        num_dropped += table.edit(where, None, {"run_id": run_id, "what": f"{table.name} of an older config"})
    return num_dropped


def stale_captions(catalog: Catalog, chosen: pa.Table) -> pa.Array:
    """Ids of the token rows whose caption is no longer the one that is chosen."""
    tokens = catalog.tokens.scan(["media_id", "caption"])
    at = pc.index_in(tokens["media_id"], value_set=chosen["media_id"].combine_chunks())
    return distinct(tokens.filter(differ(tokens["caption"], chosen["caption"].take(at)))["media_id"])


def sync_captions(catalog: Catalog, config: CaptionConfig, run_id: str) -> int:
    """Copy captions that changed into the token rows, without encoding anything; returns how many."""
    chosen = chosen_captions(catalog, config)
    stale = stale_captions(catalog, chosen)
    if not len(stale):
        return 0

    def set_caption(rows: pa.Table) -> pa.Table:
        found = pc.index_in(rows["media_id"], value_set=chosen["media_id"].combine_chunks())
        return set_columns(rows, caption=chosen["caption"].take(found))

    note = {"run_id": run_id, "what": "captions changed"}
    return catalog.tokens.edit(pc.field("media_id").isin(stale), set_caption, note)
