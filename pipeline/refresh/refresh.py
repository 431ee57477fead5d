"""What is left to do: the difference between sources, config and catalog, and the clean-up that follows changes.

Every function is idempotent and reads only ids, etags and fingerprints, so that a run after a crash, a run after a
change and a run after nothing are the same code. `reconcile` holds the rule that ties the tables together: `media`
holds what a present source holds, `captions` and `tokens` hold only kept media that are no duplicates.
"""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.join import unmatched
from tokenmill.pipeline.catalog.tables import Catalog, Table
from tokenmill.pipeline.config import Cluster, RunConfig
from tokenmill.pipeline.refresh.sources import Listing
from tokenmill.stages.fetch.urls import TRANSIENT
from tokenmill.stages.select.decide import NOT_SCORED, RULE, columns_read, decide
from tokenmill.stages.select.duplicates import KEPT, DuplicatesConfig, duplicate_ids, find_duplicates
from tokenmill.stages.select.expensive import parse_scored
from tokenmill.stages.table.columns import PLACES, TO_CAPTION
from tokenmill.stages.tokenize.load_frames import LoadFramesConfig, fitted_size
from tokenmill.storage.cpu import DTYPES
from tokenmill.storage.identity import fingerprint_of
from tokenmill.tokenizer.geometry import AspectError


def curate_fingerprint(config: RunConfig) -> str:
    """Of what is measured of every medium; rules are applied to stored scores, and a row says itself which of the
    expensive scorers it has seen (`scored`).
    """
    return fingerprint_of("curate", config.curate.read, config.curate.score, config.curate.split)


def caption_fingerprint(config: RunConfig) -> str:
    """Of the captioner."""
    return fingerprint_of("caption", config.caption.what)


def tokenize_fingerprints(config: RunConfig, model_identity: str) -> dict[str, str]:
    """Of the tokenizer's weights (by content, wherever they lie), the geometry of frames and a dtype; by dtype.

    Rows of all of them stand: with dtype auto of any dtype, so that a refresh on another machine computes nothing anew.
    New rows have that of `config.tokenize.new_dtype`.
    """
    part = config.tokenize
    what = part.what.model_dump(exclude={"model"})
    dtypes = DTYPES if part.dtype == "auto" else (part.dtype,)
    return {dtype: fingerprint_of("tokenize", part.frames, what | {"dtype": dtype}, model_identity) for dtype in dtypes}


REOPENED = "reopened"  # the fingerprint of rows whose files are to be measured anew


@dataclass(frozen=True)
class SourceChanges:
    """How the sources differ from what `sources` recorded."""

    todo: pa.Table  # rows of LISTING to read: new, changed, or measured by another config
    num_new: int
    num_changed: int
    num_remeasured: int
    recaptioned: pa.Table  # rows of LISTING whose caption alone changed
    gone: list[str]  # uris that are no longer listed
    num_unchanged: int


def source_changes(listing: Listing, catalog: Catalog, fingerprint: str) -> SourceChanges:
    """Compare a listing with the `sources` table; `fingerprint` is the fingerprint that rows should have."""
    columns = ["uri", "member", "etag", "caption_etag", "fingerprint"]
    present = catalog.sources.scan(columns, pc.field("status") == "present")
    # One member to measure anew makes its container one to read; the others are known.
    stale = pc.unique(present.filter(pc.not_equal(present["fingerprint"], fingerprint))["uri"])
    present = present.filter(pc.is_null(present["member"]))
    rows = listing.rows
    at = pc.index_in(rows["uri"], value_set=present["uri"].combine_chunks())
    old = present.take(at)  # nulls where the uri is not known
    is_new = pc.is_null(old["uri"])
    is_changed = pc.fill_null(pc.not_equal(rows["etag"], old["etag"]), False)
    is_stale = pc.is_in(rows["uri"], value_set=stale)
    is_todo = pc.or_(is_new, pc.or_(is_changed, is_stale))
    only_caption = pc.and_(pc.invert(is_todo), _differ(rows["caption_etag"], old["caption_etag"]))
    gone = present.filter(pc.invert(pc.is_in(present["uri"], value_set=rows["uri"].combine_chunks())))
    todo = rows.filter(is_todo)
    num_new, num_changed = (pc.sum(mask).as_py() or 0 for mask in (is_new, is_changed))
    return SourceChanges(
        todo=todo,
        num_new=num_new,
        num_changed=num_changed,
        num_remeasured=todo.num_rows - num_new - num_changed,
        recaptioned=rows.filter(only_caption),
        gone=sorted(gone["uri"].to_pylist()),
        num_unchanged=rows.num_rows - todo.num_rows,
    )


def forget_gone(catalog: Catalog, uris: list[str], run_id: str) -> None:
    """Mark objects that are no longer listed."""
    if not uris:
        return

    def gone(rows: pa.Table) -> pa.Table:
        return _set(rows, status=_same("gone", rows), last_seen_run=_same(run_id, rows))

    catalog.sources.edit(pc.field("uri").isin(uris), gone, {"run_id": run_id, "what": "objects gone"})


def recaption(catalog: Catalog, rows: pa.Table, texts: pa.Table, run_id: str) -> None:
    """Record source captions that changed while their files did not; `reconcile` carries them to the media.

    `rows` are rows of LISTING, `texts` the same rows with `source_caption`.
    """
    if not rows.num_rows:
        return
    uris = rows["uri"].combine_chunks()

    def change(sources: pa.Table) -> pa.Table:
        at = pc.index_in(sources["uri"], value_set=uris)
        return _set(sources, caption=texts["source_caption"].take(at), caption_etag=rows["caption_etag"].take(at))

    where = pc.field("uri").isin(uris) & pc.field("member").is_null()
    catalog.sources.edit(where, change, {"run_id": run_id, "what": "source captions changed"})


def redecide(catalog: Catalog, config: RunConfig, run_id: str) -> int:
    """Apply the config's rules to the stored scores; returns how many rows changed. Reads no medium."""
    scorers = config.curate.scorers
    media = catalog.media.scan(["media_id", *columns_read(config.curate.decide)])
    if not media.num_rows:
        return 0

    def replace(rows: pa.Table) -> pa.Table:
        return decide(rows, config.curate.decide, scorers)

    decided = replace(media)
    changed = decided.filter(verdicts_differ(media, decided))
    if not changed.num_rows:
        return 0
    ids = changed["media_id"].combine_chunks()
    catalog.media.edit(pc.field("media_id").isin(ids), replace, {"run_id": run_id, "what": "rules changed"})
    return changed.num_rows


def verdicts_differ(one: pa.Table, other: pa.Table) -> pa.ChunkedArray:
    """bool: where the verdicts of two tables with the same media differ."""
    return pc.or_(*(_differ(one[name], other[name]) for name in ("reject_reason", "reject_detail")))


def reopen(catalog: Catalog, config: RunConfig, run_id: str) -> int:
    """Send back the files of media whose verdict, or whose completeness, hangs on scores that did not run; returns how
    many media. Their rows stay until they are measured anew (`reconcile`).
    """
    media = catalog.media.scan(
        ["media_id", "file_id", "kind", "reject_reason", "reject_detail", "scored", "fingerprint"]
    )
    files = open_files(media, config)
    if not len(files):
        return 0

    def reopened(rows: pa.Table) -> pa.Table:
        return _set(rows, fingerprint=_same(REOPENED, rows))

    note = {"run_id": run_id, "what": "scores to fill in"}
    where = pc.field("file_id").isin(files)
    # Sources first: a crash in between reads these files again, and finds their media known.
    catalog.sources.edit(where, reopened, note)
    return catalog.media.edit(where, reopened, note)


def open_files(media: pa.Table, config: RunConfig) -> pa.Array:
    """File ids of the media that `reopen` sends back and has not sent back yet."""
    is_open = pc.equal(media["reject_reason"], NOT_SCORED)
    if config.curate.all_scores:
        wanted = set(config.curate.scorers)
        lacks = pa.array([not wanted <= parse_scored(text) for text in media["scored"].to_pylist()], pa.bool_())
        by_rule = pc.starts_with(media["reject_detail"], RULE)
        is_open = pc.or_kleene(is_open, pc.and_(lacks, pc.or_kleene(pc.is_null(media["reject_reason"]), by_rule)))
    if config.curate.fetch_pace.retry_failed:
        is_open = pc.or_kleene(is_open, pc.is_in(media["reject_reason"], value_set=pa.array(sorted(TRANSIENT))))
    is_open = pc.and_(pc.fill_null(is_open, False), pc.not_equal(media["fingerprint"], REOPENED))
    is_open = pc.and_(is_open, pc.not_equal(media["kind"], "text"))  # no scorer looks at documents
    return media.filter(is_open)["file_id"].combine_chunks().unique()


# Columns of `media` that follow its place, and where `sources` has them.
_PLACED = {name: name for name in ("uri", "member", "offset_bytes", "metadata")} | {"source_caption": "caption"}


def reconcile(
    catalog: Catalog, fingerprint: str, uses_source: bool, run_id: str, duplicates: DuplicatesConfig | None = None
) -> dict[str, int]:
    """Make the tables agree with the sources that are present; returns the rows moved and removed, by table.

    A medium whose file stands at another place now is moved to the first such place; each takes the source caption of
    its place; one that stands nowhere is removed from all tables; a row measured by another config is removed once its
    file has been measured anew. `uses_source`: caption rows derive from the source's captions. `duplicates`: how they
    are found among what is left (null: as they stand).
    """
    columns = ["uri", "member", "offset_bytes", "file_id", "fingerprint", "caption", "metadata"]
    where = (pc.field("status") == "present") & pc.field("file_id").is_valid()
    sources = catalog.sources.scan(columns, where).sort_by([("uri", "ascending"), ("member", "ascending")])
    columns = ["media_id", "file_id", *_PLACED, "fingerprint", "reject_reason"]
    media = catalog.media.scan(columns)
    note = {"run_id": run_id, "what": "reconciled with sources"}
    done = {"moved": 0, "recaptioned": 0, "media": 0, "captions": 0, "tokens": 0}

    renewed = sources.filter(pc.equal(sources["fingerprint"], fingerprint))["file_id"].combine_chunks()
    is_stale = pc.and_(pc.not_equal(media["fingerprint"], fingerprint), pc.is_in(media["file_id"], value_set=renewed))
    is_lost = pc.invert(pc.is_in(media["file_id"], value_set=sources["file_id"].combine_chunks()))
    stale, lost = (media.filter(mask)["file_id"].combine_chunks().unique() for mask in (is_stale, is_lost))
    if len(stale) or len(lost):
        old = pc.field("fingerprint") != fingerprint
        done["media"] = catalog.media.edit(
            (old & pc.field("file_id").isin(stale)) | pc.field("file_id").isin(lost), None, note
        )
        media = media.filter(pc.invert(pc.or_(is_stale, is_lost)))

    _place(catalog, media, sources, uses_source, note, done)
    if duplicates is not None:
        done |= {f"duplicates_{name}": count for name, count in find_duplicates(catalog, duplicates, run_id).items()}
    is_kept = pc.and_(
        pc.is_null(media["reject_reason"]), pc.invert(pc.is_in(media["media_id"], value_set=duplicate_ids(catalog)))
    )
    kept = media.filter(is_kept)["media_id"].combine_chunks()
    for name, table in (("captions", catalog.captions), ("tokens", catalog.tokens)):
        ids = table.scan(["media_id"])["media_id"]
        orphans = ids.filter(pc.invert(pc.is_in(ids, value_set=kept)))
        if len(orphans):
            done[name] += table.edit(pc.field("media_id").isin(orphans.combine_chunks()), None, note)
    return done


def _place(
    catalog: Catalog, media: pa.Table, sources: pa.Table, uses_source: bool, note: dict[str, str], done: dict[str, int]
) -> None:
    """Give each medium a place where its file is, and that place's caption; adds to `done`."""
    pairs, homes = _pair(sources).combine_chunks(), sources["file_id"].combine_chunks()

    def settle(rows: pa.Table) -> pa.Table:
        # The first match: sources are sorted by place.
        at = pc.coalesce(pc.index_in(_pair(rows), value_set=pairs), pc.index_in(rows["file_id"], value_set=homes))
        return _set(rows, **{name: sources[of].take(at) for name, of in _PLACED.items()})

    settled = settle(media)
    differs = {name: _differ(media[name], settled[name]) for name in _PLACED}
    moved = pc.or_(differs["uri"], pc.or_(differs["member"], differs["offset_bytes"]))
    recaptioned = differs["source_caption"]
    ids = media.filter(pc.or_(pc.or_(moved, recaptioned), differs["metadata"]))["media_id"].combine_chunks()
    if not len(ids):
        return
    done["moved"], done["recaptioned"] = (pc.sum(mask).as_py() for mask in (moved, recaptioned))
    if uses_source and done["recaptioned"]:
        # Caption rows that derive from the old text go first: a crash in between leaves work to redo, nothing wrong.
        derived = media.filter(recaptioned)["media_id"].combine_chunks()
        done["captions"] += catalog.captions.edit(pc.field("media_id").isin(derived), None, note)
    catalog.media.edit(pc.field("media_id").isin(ids), settle, note)


def _differ(one: pa.ChunkedArray, other: pa.ChunkedArray) -> pa.ChunkedArray:
    """Where two text columns differ; null differs from every text and from no null."""
    nulls_differ = pc.xor(pc.is_null(one), pc.is_null(other))
    return pc.or_(nulls_differ, pc.fill_null(pc.not_equal(one, other), False))


def _pair(rows: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(rows["file_id"], rows["uri"], pc.fill_null(rows["member"], ""), "\n")


def _same(value: str, rows: pa.Table) -> pa.Array:
    return pa.array([value] * rows.num_rows, pa.string())


def _set(rows: pa.Table, **columns: pa.Array | pa.ChunkedArray) -> pa.Table:
    for name, column in columns.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows


def _to_do(catalog: Catalog, columns: list[str], done: Table, fingerprints: list[str], config: Cluster) -> pa.Table:
    """Media that go on (not rejected, no duplicate of another) and have no row of these fingerprints in `done`."""
    kept = catalog.media, pc.field("reject_reason").is_null()
    aside = catalog.duplicates, pc.field("method") != KEPT
    return unmatched(kept, columns, [aside, (done, pc.field("fingerprint").isin(fingerprints))], config)


def without_caption(catalog: Catalog, fingerprint: str, config: Cluster) -> pa.Table:
    """Kept media that have no caption of this fingerprint; the todo of the caption phase."""
    return _to_do(catalog, TO_CAPTION.names, catalog.captions, [fingerprint], config)


def without_tokens(catalog: Catalog, fingerprints: list[str], frames: LoadFramesConfig, config: Cluster) -> pa.Table:
    """Kept, captioned media that have no codes of these fingerprints; the todo of the tokenize phase.

    Media of one bucket stand together, so that the tokenizer's batches are full; so do the clips of one video.
    """
    columns = PLACES.names
    media = _to_do(catalog, [*columns, "width_px", "height_px"], catalog.tokens, fingerprints, config)
    captions = catalog.captions.scan(["media_id", "caption"], pc.field("media_id").isin(media["media_id"].unique()))
    at = pc.index_in(media["media_id"], value_set=captions["media_id"].combine_chunks())
    rows = media.append_column("caption", captions["caption"].take(at)).filter(pc.is_valid(at))
    order = [(name, "ascending") for name in ("kind", "bucket", "uri", "offset_bytes", "member", "start_s", "media_id")]
    return rows.append_column("bucket", _buckets(rows, frames)).sort_by(order).select([*columns, "caption"])


def _buckets(rows: pa.Table, frames: LoadFramesConfig) -> pa.Array:
    """The size at which each medium is tokenized, as one text; null where it is rejected for its aspect."""
    known: dict[tuple[int | None, int | None], str | None] = {(None, None): None}
    found = []
    for size in zip(rows["width_px"].to_pylist(), rows["height_px"].to_pylist(), strict=True):
        if size not in known:
            try:
                fitted = fitted_size(*size, frames)
                known[size] = f"{fitted[0]}x{fitted[1]}"
            except AspectError:
                known[size] = None
        found.append(known[size])
    return pa.array(found, pa.string())


def drop_stale(catalog: Catalog, name: str, fingerprints: list[str], run_id: str) -> int:
    """Remove rows from `captions` or `tokens` whose media have one of a fingerprint that comes earlier in
    `fingerprints`; a fingerprint that is not among them comes last.
    """
    table = catalog.captions if name == "captions" else catalog.tokens
    rows = table.scan(["media_id", "fingerprint"])
    num_dropped = 0
    for number, fingerprint in enumerate(fingerprints):
        better = pa.array(fingerprints[: number + 1], pa.string())
        current = rows.filter(pc.equal(rows["fingerprint"], fingerprint))["media_id"].combine_chunks()
        old = rows.filter(pc.invert(pc.is_in(rows["fingerprint"], value_set=better)))["media_id"].combine_chunks()
        if pc.any(pc.is_in(old, value_set=current)).as_py():
            where = ~pc.field("fingerprint").isin(better) & pc.field("media_id").isin(current)
            num_dropped += table.edit(where, None, {"run_id": run_id, "what": f"{name} of an older config"})
    return num_dropped


def stale_captions(catalog: Catalog) -> pa.Array:
    """Ids of the token rows whose caption is no longer that of `captions`."""
    tokens = catalog.tokens.scan(["media_id", "caption"])
    captions = catalog.captions.scan(["media_id", "caption"])
    at = pc.index_in(tokens["media_id"], value_set=captions["media_id"].combine_chunks())
    differs = _differ(tokens["caption"], captions["caption"].take(at))
    return tokens.filter(pc.and_(differs, pc.is_valid(at)))["media_id"].combine_chunks()


def sync_captions(catalog: Catalog, run_id: str) -> int:
    """Copy captions that changed into the token rows, without encoding anything; returns how many."""
    stale = stale_captions(catalog)
    if not len(stale):
        return 0
    captions = catalog.captions.scan(["media_id", "caption"], pc.field("media_id").isin(stale))

    def set_caption(rows: pa.Table) -> pa.Table:
        found = pc.index_in(rows["media_id"], value_set=captions["media_id"].combine_chunks())
        return _set(rows, caption=captions["caption"].take(found))

    return catalog.tokens.edit(
        pc.field("media_id").isin(stale), set_caption, {"run_id": run_id, "what": "captions changed"}
    )
