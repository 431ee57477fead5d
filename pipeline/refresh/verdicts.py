"""The rules over stored scores: media whose verdict is to change, and files whose scores are lacking for one."""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.refresh.arrow import differ, distinct, is_in, set_columns
from tokenmill.pipeline.refresh.changed_keys import REOPENED
from tokenmill.stages.fetch.urls import TRANSIENT
from tokenmill.stages.select.decide import NOT_SCORED, RULE, columns_read, decide
from tokenmill.stages.select.expensive import parse_scored
from tokenmill.stages.select.votes import media_votes


@dataclass(frozen=True)
class Judgement:
    """All media under the rules of a config; columns stand row by row."""

    media_id: pa.ChunkedArray
    file_id: pa.ChunkedArray
    fingerprint: pa.ChunkedArray
    was_kept: pa.ChunkedArray  # bool
    is_kept: pa.ChunkedArray  # bool: by the rules now
    differs: pa.ChunkedArray  # bool: another verdict, or another reason for it
    open_files: pa.Array  # ids of files to read again, for scores that a verdict or completeness hangs on

    @property
    def ids(self) -> pa.Array:
        """Media whose verdict changes."""
        return distinct(self.media_id.filter(self.differs))

    @property
    def rejected(self) -> pa.Array:
        """Media that are kept, and will not be."""
        return distinct(self.media_id.filter(pc.and_(self.was_kept, pc.invert(self.is_kept))))

    def of_files(self, files: pa.Array) -> pa.Array:
        """Ids of the media of these files."""
        return distinct(self.media_id.filter(is_in(self.file_id, files)))


def judge(config: RunConfig, catalog: Catalog, placed: pa.Table) -> Judgement:
    """Apply the rules to all stored scores, and to what is to change with the places of media (upkeep.py); writes
    nothing.
    """
    columns = ["media_id", "file_id", "fingerprint", *columns_read(config.curate.decide)]
    media = catalog.media.scan(list(dict.fromkeys(columns)))
    decided = by_rules(config)(_as_placed(media, placed))
    return Judgement(
        media["media_id"],
        media["file_id"],
        media["fingerprint"],
        pc.is_null(media["reject_reason"]),
        pc.is_null(decided["reject_reason"]),
        pc.or_(*(differ(media[name], decided[name]) for name in ("reject_reason", "reject_detail"))),
        _open_files(decided, config),
    )


def _open_files(media: pa.Table, config: RunConfig) -> pa.Array:
    """Those that have not been sent back yet."""
    is_open = pc.equal(media["reject_reason"], NOT_SCORED)
    if config.curate.all_scores:
        wanted = set(config.curate.scorers)
        lacks = pa.array([not wanted <= parse_scored(text) for text in media["scored"].to_pylist()], pa.bool_())
        by_rule = pc.starts_with(media["reject_detail"], RULE)
        is_open = pc.or_kleene(is_open, pc.and_(lacks, pc.or_kleene(pc.is_null(media["reject_reason"]), by_rule)))
    if config.curate.fetch_pace.retry_failed:
        is_open = pc.or_kleene(is_open, is_in(media["reject_reason"], pa.array(sorted(TRANSIENT))))
    is_open = pc.and_(pc.fill_null(is_open, False), pc.not_equal(media["fingerprint"], REOPENED))
    is_open = pc.and_(is_open, pc.not_equal(media["kind"], "text"))  # no scorer looks at documents
    return distinct(media.filter(is_open)["file_id"])


def _as_placed(media: pa.Table, placed: pa.Table) -> pa.Table:
    """`media` with the values of `placed` where that has the medium."""
    names = [name for name in placed.column_names if name in media.column_names and name != "media_id"]
    if not names or not placed.num_rows:
        return media
    at = pc.index_in(media["media_id"], value_set=placed["media_id"].combine_chunks())
    settled = {name: pc.if_else(pc.is_valid(at), placed[name].take(at), media[name]) for name in names}
    return set_columns(media, **settled)


def by_rules(config: RunConfig) -> Callable[[pa.Table], pa.Table]:
    """What gives rows of media the verdicts of the config's rules and votes. Raises UserError for votes that are not
    to be read.
    """
    part = config.curate
    votes = media_votes(part.decide.votes)
    return lambda rows: decide(rows, part.decide, part.scorers, votes)


def redecide(catalog: Catalog, ids: pa.Array, config: RunConfig, run_id: str) -> None:
    """Write the verdicts of the config's rules on the stored scores of these media."""
    if not len(ids):
        return
    note = {"run_id": run_id, "what": "rules changed"}
    catalog.media.edit(pc.field("media_id").isin(ids), by_rules(config), note)
