"""Captions whose likeness to their medium a rule reads, and that have none by this CLIP model yet."""

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.refresh.arrow import is_in
from tokenmill.stages.table.columns import CAPTIONS, MEDIA

TO_SCORE = pa.schema([*(f for f in CAPTIONS if f.name not in ("fingerprint", "run_id")), MEDIA.field("embedding")])


def scorer(config: RunConfig) -> str | None:
    """`clip:identity` of the model that embeds media, where there is one."""
    return next((name for name in config.curate.scorers if name.startswith("clip:")), None)


def to_score(config: RunConfig, catalog: Catalog, name: str, standing: list[str], columns: list[str]) -> pa.Table:
    """`columns` of TO_SCORE of the captions of `name`, if its rules read `likeness`; media without an embedding by this
    model have none.
    """
    if not config.caption.all[name].reads_likeness:
        return TO_SCORE.empty_table().select(columns)
    by = scorer(config)
    lacks = pc.coalesce(pc.field("likeness_by") != by, pc.scalar(True)) & pc.field("caption").is_valid()
    where = (pc.field("captioner") == name) & pc.field("fingerprint").isin(standing) & lacks
    of_media = [each for each in columns if each == "embedding"]
    media = catalog.media.scan(["media_id", "scored", *of_media], pc.field("embedding").is_valid())
    media = media.filter(pc.match_substring(media["scored"], by or ""))
    rows = catalog.captions.scan([each for each in columns if each not in of_media], where)
    rows = rows.filter(is_in(rows["media_id"], media["media_id"])).sort_by("media_id")
    if of_media:
        at = pc.index_in(rows["media_id"], value_set=media["media_id"].combine_chunks())
        rows = rows.append_column("embedding", media["embedding"].take(at))
    return rows.select(columns)


def drop_unscored(config: RunConfig, catalog: Catalog, name: str, note: dict[str, str]) -> None:
    """Remove the rows without a likeness in whose place others have one; what a stopped run left, too."""
    by = scorer(config)
    mine = pc.field("captioner") == name
    scored = row_ids(catalog.captions.scan(["media_id", "span", "fingerprint"], mine & (pc.field("likeness_by") == by)))
    if not len(scored):
        return

    def without_old(rows: pa.Table) -> pa.Table:
        is_old = pc.fill_null(pc.not_equal(rows["likeness_by"], by), True)
        return rows.filter(pc.invert(pc.and_(is_old, is_in(row_ids(rows), scored))))

    old = pc.coalesce(pc.field("likeness_by") != by, pc.scalar(True)) & mine
    rows = catalog.captions.scan(["media_id", "span", "fingerprint"], old)
    if pc.any(is_in(row_ids(rows), scored)).as_py():
        catalog.captions.edit(old, without_old, note | {"what": "likeness scored"})


def row_ids(rows: pa.Table) -> pa.ChunkedArray:
    """What tells rows of one captioner apart."""
    span = pc.fill_null(pc.cast(rows["span"], pa.string()), "")
    return pc.binary_join_element_wise(rows["media_id"], span, rows["fingerprint"], ":")
