"""The plan of tokenize: media that go on and have no codes of this config yet; nothing is written."""

from dataclasses import dataclass, replace
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.chosen import chosen_captions
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import Cluster, RunConfig
from tokenmill.pipeline.refresh import fingerprints
from tokenmill.pipeline.refresh.arrow import NO_IDS, distinct, is_in
from tokenmill.pipeline.refresh.changed_keys import Why
from tokenmill.pipeline.refresh.edits import stale_captions
from tokenmill.pipeline.refresh.media import WAS_READ, MediaSteps, media_todo
from tokenmill.pipeline.refresh.steps import NOW, Outlook, Step, counted
from tokenmill.stages import PLACES, LoadFramesConfig, bucket


@dataclass(frozen=True)
class TokenizePlan:
    """What tokenize is to do."""

    steps: list[Step]
    todo: pa.Table  # rows for the stages; where curate goes before, media_id alone
    fingerprints: list[str]  # of rows that stand; new rows have the first
    is_exact: bool  # the tables are as they will be when the phase begins
    outlook: Outlook
    is_nothing: bool

    @classmethod
    def nothing(cls, told: list[str], config: RunConfig) -> "TokenizePlan":
        """Where all is as it is to be."""
        todo = pa.schema([*PLACES, ("caption", pa.string())]).empty_table()
        steps = [Step("tokenize", why, 0) for why in told]
        return cls(steps, todo, fingerprints.standing_tokens(config), True, NOW, True)


def plan_tokenize(config: RunConfig, catalog: Catalog, outlook: Outlook) -> TokenizePlan:
    """Kept media without codes of this tokenizer; and captions that change."""
    standing, chosen = fingerprints.standing_tokens(config), chosen_captions(catalog, config.caption.what)
    todo = to_tokenize(catalog, chosen, standing, outlook, config.tokenize.frames, config.cluster)
    rows = catalog.tokens.scan(["media_id", "fingerprint", "run_id"], WAS_READ)
    made = MediaSteps("tokenize", "codes", outlook, rows, standing, Why(config, catalog.root))
    made.tell_todo(todo, NO_IDS, "tokenize")
    stale = distinct(outlook.recaptioned, stale_captions(catalog, chosen))
    stale = stale.filter(is_in(stale, made.done))
    if outlook.kept is not None:
        stale = stale.filter(is_in(stale, outlook.kept))
    if len(stale):
        made.add("captions changed; codes stay", 0, "", f"captions of {counted(len(stale), 'row')}")
    made.close(f"nothing: {len(made.done)} kept media encoded already")
    after = outlook if made.is_nothing else replace(outlook, tokens_change=True)
    return TokenizePlan(made.steps, todo, standing, outlook.is_now, after, made.is_nothing)


def to_tokenize(
    catalog: Catalog,
    chosen: pa.Table,
    standing: list[str],
    outlook: Outlook,
    frames: LoadFramesConfig,
    cluster: Cluster,
) -> pa.Table:
    """Rows for the stages with the captions of `chosen`, or their ids where the tables are to change before.

    Media of one bucket stand together, so that the tokenizer's batches are full; so do the clips of one video.
    """
    columns = [*PLACES.names, "width_px", "height_px"] if outlook.is_now else ["media_id"]
    rows = media_todo(catalog, catalog.tokens, columns, standing, NO_IDS, outlook, cluster)
    if not outlook.is_now:
        return rows
    at = pc.index_in(rows["media_id"], value_set=chosen["media_id"].combine_chunks())
    rows = rows.append_column("caption", chosen["caption"].take(at))
    bucket_of = lru_cache(None)(bucket)
    sizes = zip(rows["width_px"].to_pylist(), rows["height_px"].to_pylist(), strict=True)
    buckets = pa.array([bucket_of(*size, frames) for size in sizes], pa.string())
    order = [(name, "ascending") for name in ("kind", "bucket", "uri", "offset_bytes", "member", "start_s", "media_id")]
    return rows.append_column("bucket", buckets).sort_by(order).select([*PLACES.names, "caption"])
