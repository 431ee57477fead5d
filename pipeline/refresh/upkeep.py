"""The rule that ties the tables together, as what it asks for and as edits that carry it out.

`media` holds what a present source holds, at the first place where it stands and with the longest caption of all its
places, and says whether the extension of one of them fits; `captions` and `tokens` hold only media that go on: not
rejected, no duplicate of another.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.join import kept_ids
from tokenmill.pipeline.catalog.tables import Catalog, Table
from tokenmill.pipeline.refresh.arrow import NO_IDS, differ, distinct, index_in, is_in, set_columns, without
from tokenmill.stages import CaptionConfig, DuplicatesConfig
from tokenmill.stages.read.formats import extensions_fit
from tokenmill.stages.select.duplicates import Verdicts, find_duplicates, record_duplicates

# Columns of `media` that follow its place, and where `sources` has them.
_PLACED = {name: name for name in ("uri", "member", "offset_bytes", "metadata")} | {"source_caption": "caption"}
FOLLOWING = (*_PLACED, "extension_fits")
_NOWHERE = pa.scalar(None, pa.int32())


@dataclass(frozen=True)
class Foreseen:
    """Objects of the sources as they will be, where that is another than `sources` says."""

    gone: pa.Array = field(default_factory=lambda: NO_IDS)  # uris that are no longer listed
    changed: pa.Array = field(default_factory=lambda: NO_IDS)  # uris whose content is another, and not known yet
    captions: Mapping[str, str | None] = field(default_factory=dict)  # by uri


@dataclass(frozen=True)
class Upkeep:
    """What `media` needs in order to agree with the sources."""

    stale: pa.Array  # files of media measured by another config that have been measured anew: the old rows go
    lost: pa.Array  # files that stand nowhere
    placed: pa.Table  # media_id, and the columns that follow its place, of media for which they change
    moved: pa.Array  # ids of those that stand at another place now
    renamed: pa.Array  # ids of those of whose names another verdict holds, whether an extension fits
    recaptioned: pa.Array  # ids of media whose source caption is another
    redescribed: pa.Array  # ids of media whose metadata are others

    @property
    def change(self) -> bool:
        """Whether there is anything to write."""
        return bool(len(self.stale) or len(self.lost) or self.placed.num_rows)


def upkeep(catalog: Catalog, fingerprint: str, foreseen: Foreseen | None = None) -> Upkeep:
    """What is to change, by the sources as recorded or as foreseen; `fingerprint` is that of curate."""
    sources = _places(catalog, foreseen or Foreseen())
    columns = ["media_id", "file_id", "kind", "format", "container_format", *FOLLOWING, "fingerprint"]
    media = catalog.media.scan(columns)
    renewed = sources.filter(pc.equal(sources["fingerprint"], fingerprint))["file_id"]
    is_stale = pc.and_(pc.not_equal(media["fingerprint"], fingerprint), is_in(media["file_id"], renewed))
    is_lost = pc.invert(is_in(media["file_id"], sources["file_id"]))
    old, lost = media.filter(is_stale), distinct(media.filter(is_lost)["file_id"])
    if old.num_rows or len(lost):
        media = media.filter(pc.invert(pc.or_(is_stale, is_lost)))

    # The first match: sources are sorted by place.
    at = pc.coalesce(
        pc.index_in(_pair(media), value_set=_pair(sources).combine_chunks()),
        pc.index_in(media["file_id"], value_set=sources["file_id"].combine_chunks()),
    )
    settled = {name: sources[of].take(at) for name, of in _PLACED.items()}
    settled["source_caption"] = _captions(media["file_id"], sources, settled["source_caption"])
    settled["extension_fits"] = _extension_fits(media, sources, settled)
    differs = {name: differ(media[name], settled[name]) for name in FOLLOWING}
    moved = pc.or_(differs["uri"], pc.or_(differs["member"], differs["offset_bytes"]))
    is_other = reduce(pc.or_, differs.values())
    placed = set_columns(media.select(["media_id", *FOLLOWING]).filter(is_other), **_filtered(settled, is_other))
    recaptioned = media.filter(differs["source_caption"])["media_id"]
    if old.num_rows:  # what was measured anew has its source's caption of now already
        at = pc.index_in(old["media_id"], value_set=media["media_id"].combine_chunks())
        is_other = pc.and_(pc.is_valid(at), differ(old["source_caption"], settled["source_caption"].take(at)))
        recaptioned = distinct(recaptioned, old.filter(is_other)["media_id"])
    masks = {"moved": moved, "renamed": differs["extension_fits"], "redescribed": differs["metadata"]}
    ids = {name: distinct(media.filter(mask)["media_id"]) for name, mask in masks.items()}
    return Upkeep(distinct(old["file_id"]), lost, placed, recaptioned=distinct(recaptioned), **ids)


def _captions(files: pa.ChunkedArray, sources: pa.Table, of_place: pa.ChunkedArray) -> pa.ChunkedArray:
    """The source caption of each of `files`: that of its place, `of_place`, or, where the content stands at several
    places, the longest of theirs; of equals the first by place. The others stand in `sources`.
    """
    several = _at_several_places(sources)
    if not len(several):
        return of_place
    told = sources.filter(pc.and_(is_in(sources["file_id"], several), pc.is_valid(sources["caption"])))
    told = told.append_column("length", pc.utf8_length(told["caption"]))
    told = told.sort_by([("length", "descending"), ("uri", "ascending"), ("member", "ascending")])
    best = told["caption"].take(pc.index_in(files, value_set=told["file_id"].combine_chunks()))
    return pc.if_else(is_in(files, several), best, of_place)


def _extension_fits(media: pa.Table, sources: pa.Table, settled: dict[str, pa.ChunkedArray]) -> pa.ChunkedArray:
    """Whether the extension of a name of each of `media` fits: of its place, or of any of several; as it stands where
    the format is not known, as of videos that an older release read.
    """
    formats = pc.if_else(pc.equal(media["kind"], "video"), media["container_format"], media["format"])
    fits = extensions_fit(pc.coalesce(settled["member"], settled["uri"]), formats)
    if len(several := _at_several_places(sources)):
        named = sources.filter(is_in(sources["file_id"], several))
        of_named = formats.take(pc.index_in(named["file_id"], value_set=media["file_id"].combine_chunks()))
        each = extensions_fit(pc.coalesce(named["member"], named["uri"]), of_named)
        any_ = pa.table({"file_id": named["file_id"], "fits": each}).group_by("file_id").aggregate([("fits", "max")])
        at = pc.index_in(media["file_id"], value_set=any_["file_id"].combine_chunks())
        fits = pc.if_else(pc.is_valid(at), any_["fits_max"].take(at), fits)
    return pc.if_else(pc.is_valid(formats), fits, media["extension_fits"])


def _at_several_places(sources: pa.Table) -> pa.Array:
    counts = sources["file_id"].value_counts()
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1))


def _filtered(columns: dict[str, pa.ChunkedArray], mask: pa.ChunkedArray) -> dict[str, pa.ChunkedArray]:
    return {name: column.filter(mask) for name, column in columns.items()}


def _places(catalog: Catalog, foreseen: Foreseen) -> pa.Table:
    """Rows of `sources` whose content is known, by place."""
    columns = ["uri", "member", "offset_bytes", "file_id", "fingerprint", "caption", "metadata"]
    sources = catalog.sources.scan(columns, (pc.field("status") == "present") & pc.field("file_id").is_valid())
    away = distinct(foreseen.gone, foreseen.changed)
    if len(away):
        sources = sources.filter(pc.invert(is_in(sources["uri"], away)))
    if foreseen.captions:
        uris, texts = (pa.array(values, pa.string()) for values in zip(*foreseen.captions.items(), strict=True))
        at = pc.if_else(pc.is_null(sources["member"]), pc.index_in(sources["uri"], value_set=uris), _NOWHERE)
        captions = pc.if_else(pc.is_valid(at), pa.chunked_array([texts]).take(at), sources["caption"])
        sources = set_columns(sources, caption=captions)
    return sources.sort_by([("uri", "ascending"), ("member", "ascending")])


def _pair(rows: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(rows["file_id"], rows["uri"], pc.fill_null(rows["member"], ""), "\n")


def orphans(table: Table, kept: pa.Array) -> pa.Array:
    """Ids of rows whose media do not go on."""
    return distinct(without(table.scan(["media_id"])["media_id"], kept))


def reconcile(
    catalog: Catalog,
    fingerprint: str,
    captions: CaptionConfig,
    run_id: str,
    duplicates: DuplicatesConfig | Verdicts | None = None,
    decide: Callable[[pa.Table], pa.Table] | None = None,
) -> dict[str, int]:
    """Make the tables agree with the sources as recorded; returns the rows moved and removed, by table.

    `captions`: who writes captions of what the source says. `duplicates`: how they are found among what is left,
    or who they are (null: as they stand). `decide` judges media whose columns change by the rules (null: their verdicts
    stay). Idempotent: a run after a crash does the rest.
    """
    found, note = upkeep(catalog, fingerprint), {"run_id": run_id, "what": "brought in line with sources and verdicts"}
    done = {"moved": len(found.moved), "recaptioned": len(found.recaptioned), "media": 0, "captions": 0, "tokens": 0}
    # Caption rows that derive from the old text go first: a crash in between leaves work to redo, nothing wrong.
    for slot, ids in (("source_caption", found.recaptioned), ("metadata", found.redescribed)):
        if len(ids) and (readers := captions.readers(slot)):
            is_reader = pc.field("captioner").isin(readers)
            done["captions"] += catalog.captions.edit(is_reader & pc.field("media_id").isin(ids), None, note)
    if len(found.stale) or len(found.lost):
        is_old = (pc.field("fingerprint") != fingerprint) & pc.field("file_id").isin(found.stale)
        done["media"] = catalog.media.edit(is_old | pc.field("file_id").isin(found.lost), None, note)
    if found.placed.num_rows:
        ids = found.placed["media_id"].combine_chunks()

        def settle(rows: pa.Table) -> pa.Table:
            at = index_in(rows["media_id"], ids)
            settled = set_columns(rows, **{name: found.placed[name].take(at) for name in FOLLOWING})
            return settled if decide is None else decide(settled)

        catalog.media.edit(pc.field("media_id").isin(ids), settle, note)
    if duplicates is not None:
        verdicts = duplicates if isinstance(duplicates, Verdicts) else find_duplicates(catalog, duplicates)
        counts = record_duplicates(catalog, verdicts, run_id)
        done |= {f"duplicates_{name}": number for name, number in counts.items()}
    kept = kept_ids(catalog)
    for name, table in (("captions", catalog.captions), ("tokens", catalog.tokens)):
        if len(ids := orphans(table, kept)):
            done[name] += table.edit(pc.field("media_id").isin(ids), None, note)
    return done
