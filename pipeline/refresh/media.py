"""The plans of caption and tokenize: media that go on and have no row of this config yet; nothing is written."""

from dataclasses import dataclass, replace
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.join import kept_without
from tokenmill.pipeline.catalog.tables import Catalog, Table
from tokenmill.pipeline.config import Cluster, RunConfig
from tokenmill.pipeline.refresh import fingerprints
from tokenmill.pipeline.refresh.arrow import NO_IDS, distinct, is_in, without
from tokenmill.pipeline.refresh.changed_keys import Why
from tokenmill.pipeline.refresh.edits import stale_captions, superseded
from tokenmill.pipeline.refresh.steps import Outlook, Step, counted
from tokenmill.stages.table.columns import CHANGED, PLACES, TO_CAPTION, VANISHED
from tokenmill.stages.tokenize.frames import LoadFramesConfig, bucket

# Rows of media that were met at their place; the others are tried again, for by then it may be known where they stand.
WAS_READ = pc.coalesce(~pc.field("reject_reason").isin([VANISHED, CHANGED]), pc.scalar(True))


@dataclass(frozen=True)
class MediaPlan:
    """What caption or tokenize is to do."""

    steps: list[Step]
    todo: pa.Table  # rows for the stages; where curate goes before, media_id alone
    fingerprints: list[str]  # of rows that stand; new rows have the first
    is_exact: bool  # the tables are as they will be when the phase begins
    outlook: Outlook
    is_nothing: bool


def plan_caption(config: RunConfig, catalog: Catalog, outlook: Outlook) -> MediaPlan:
    """Kept media without a caption of this captioner, and those whose source caption changes."""
    standing = [fingerprints.of_caption(config)]
    todo = to_caption(catalog, standing, outlook, config.cluster)
    rows = catalog.captions.scan(["media_id", "fingerprint", "run_id"])
    made = _Steps("caption", "captions", outlook, rows, standing, Why(config, catalog.root))
    again = made.tell_again(todo)
    changed = made.tell_todo(todo, again, "caption")
    made.close(f"nothing: {len(made.done)} kept media captioned already")
    after = replace(outlook, recaptioned=distinct(again, changed), every_caption=not made.is_nothing)
    return MediaPlan(made.steps, todo, standing, outlook.is_now, after, made.is_nothing)


def plan_tokenize(config: RunConfig, catalog: Catalog, outlook: Outlook) -> MediaPlan:
    """Kept, captioned media without codes of this tokenizer; and captions that change."""
    standing = fingerprints.standing_tokens(config)
    todo = to_tokenize(catalog, standing, outlook, config.tokenize.frames, config.cluster)
    rows = catalog.tokens.scan(["media_id", "fingerprint", "run_id"], WAS_READ)
    made = _Steps("tokenize", "codes", outlook, rows, standing, Why(config, catalog.root))
    made.tell_todo(todo, NO_IDS, "tokenize")
    stale = distinct(outlook.recaptioned, stale_captions(catalog))
    stale = stale.filter(is_in(stale, made.done))
    if outlook.kept is not None:
        stale = stale.filter(is_in(stale, outlook.kept))
    if len(stale):
        made.add("captions changed; codes stay", 0, "", f"captions of {counted(len(stale), 'row')}")
    made.close(f"nothing: {len(made.done)} captioned media encoded already")
    after = outlook if made.is_nothing else replace(outlook, tokens_change=True)
    return MediaPlan(made.steps, todo, standing, outlook.is_now, after, made.is_nothing)


def to_caption(catalog: Catalog, standing: list[str], outlook: Outlook, cluster: Cluster) -> pa.Table:
    """Rows for the stages, or their ids where the tables are to change before."""
    columns = TO_CAPTION.names if outlook.is_now else ["media_id"]
    return _todo(catalog, catalog.captions, columns, standing, outlook.recaptioned, outlook, cluster)


def to_tokenize(
    catalog: Catalog, standing: list[str], outlook: Outlook, frames: LoadFramesConfig, cluster: Cluster
) -> pa.Table:
    """Rows for the stages, or their ids where the tables are to change before.

    Media of one bucket stand together, so that the tokenizer's batches are full; so do the clips of one video.
    """
    columns = [*PLACES.names, "width_px", "height_px"] if outlook.is_now else ["media_id"]
    media = _todo(catalog, catalog.tokens, columns, standing, NO_IDS, outlook, cluster)
    if not outlook.is_now:
        return media if outlook.every_caption else media.filter(is_in(media["media_id"], _captioned(catalog)))
    captions = catalog.captions.scan(["media_id", "caption"], pc.field("media_id").isin(media["media_id"].unique()))
    at = pc.index_in(media["media_id"], value_set=captions["media_id"].combine_chunks())
    rows = media.append_column("caption", captions["caption"].take(at)).filter(pc.is_valid(at))
    bucket_of = lru_cache(None)(bucket)
    sizes = zip(rows["width_px"].to_pylist(), rows["height_px"].to_pylist(), strict=True)
    buckets = pa.array([bucket_of(*size, frames) for size in sizes], pa.string())
    order = [(name, "ascending") for name in ("kind", "bucket", "uri", "offset_bytes", "member", "start_s", "media_id")]
    return rows.append_column("bucket", buckets).sort_by(order).select([*PLACES.names, "caption"])


def _todo(
    catalog: Catalog,
    table: Table,
    columns: list[str],
    standing: list[str],
    anew: pa.Array,
    outlook: Outlook,
    cluster: Cluster,
) -> pa.Table:
    """Media that go on without a row in `table`, those of `anew` whether or not; less those that may be rejected."""
    done = pc.field("fingerprint").isin(standing) & WAS_READ
    if len(anew):
        done = done & ~pc.field("media_id").isin(anew)
    rows = kept_without(catalog, columns, (table, done), outlook.kept, cluster)
    return rows.filter(pc.invert(is_in(rows["media_id"], outlook.open))) if len(outlook.open) else rows


def _captioned(catalog: Catalog) -> pa.ChunkedArray:
    return catalog.captions.scan(["media_id"])["media_id"]


class _Steps:
    """The steps of one phase: for media of another config, for those without a row, for those that curate may keep."""

    def __init__(self, phase: str, what: str, outlook: Outlook, rows: pa.Table, standing: list[str], why: Why):
        self.phase, self.what, self.steps, self.is_nothing = phase, what, list[Step](), True
        self._outlook, self._rows, self._why = outlook, rows, why
        self.done = distinct(rows.filter(is_in(rows["fingerprint"], pa.array(standing)))["media_id"])
        self._num_superseded = superseded(rows, standing).num_rows

    def add(self, why: str, num_read: int | None, computes: str = "", writes: str = "") -> None:
        self.is_nothing = False
        self.steps.append(Step(self.phase, why, num_read, computes, writes))

    def tell_again(self, todo: pa.Table) -> pa.Array:
        """Media that have a caption and get another one, because their source's is another."""
        again = distinct(todo["media_id"].filter(is_in(todo["media_id"], self.done)))
        if len(again):
            self.add("source captions changed", len(again), self.what, f"{len(again)} {self.what}")
        return again

    def tell_todo(self, todo: pa.Table, told: pa.Array, below: str) -> pa.Array:
        """Returns the media whose rows are of another config."""
        ids, what = without(distinct(todo["media_id"]), told), self.what
        stale = self._rows.filter(is_in(self._rows["media_id"], ids))
        changed = distinct(stale["media_id"])
        if len(changed):
            self.add(self._why.of_rows(stale, "run_id", below), len(changed), what, f"{len(changed)} {what}")
        if number := len(ids) - len(changed):
            self.add(f"kept, without {what}", number, what, f"{number} {what}")
        if number := self._outlook.num_open_files:
            self.add(f"what curate keeps of {counted(number, 'file')}", None, what, f"their {what}")
        return changed

    def close(self, nothing: str) -> None:
        """What a stopped run left, or that there is nothing."""
        if self._num_superseded and self.is_nothing:
            self.add("left by a run that was stopped", 0, "", f"-{self._num_superseded} older {self.what}")
        if self.is_nothing:
            self.steps.append(Step(self.phase, nothing, 0))
