"""From files to trained tokens: how many there are at each step, and for which reasons the others are not; what runs
read, computed and spent.
"""

from dataclasses import dataclass
from typing import Any

from tokenmill import stages
from tokenmill.pipeline.catalog.records import newest_first
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.looking.query import Tables

_SHOWN_RUNS = 12


@dataclass(frozen=True)
class Reason:
    """Why so many rows are not in the next step."""

    name: str
    meaning: str
    count: int


@dataclass(frozen=True)
class Step:
    """A step of the funnel: rows of a kind, how many go on, and why the others do not."""

    name: str
    kind: str
    seen: int
    kept: int
    reasons: list[Reason]


def funnel(tables: Tables) -> list[Step]:
    """All steps in their order, each by kind."""
    steps = [*_files(tables)]
    steps += _by_kind(
        "media, by rules",
        tables.rows(
            "select coalesce(kind, 'unknown') as kind, reject_reason as reason, count(*) as count "
            "from media group by all"
        ),
    )
    steps += _by_kind(
        "copies and near copies",
        tables.rows(
            "select m.kind, nullif(d.method, ?) as reason, count(*) as count from duplicates d "
            "join (select media_id, any_value(kind) as kind from media group by all) m using (media_id) group by all",
            stages.KEPT,
        ),
    )
    for captioner in tables.rows("select distinct captioner from captions order by captioner <> 'source', captioner"):
        steps += _by_kind(
            f"captions by {captioner['captioner']}",
            tables.rows(
                "select m.kind, coalesce(c.reject_reason, if(c.caption is null, 'no caption', null)) as reason, "
                "count(*) as count from captions c "
                "join (select media_id, any_value(kind) as kind from media group by all) m using (media_id) "
                "where c.captioner = ? group by all",
                captioner["captioner"],
            ),
        )
    steps += _by_kind(
        "tokens", tables.rows("select kind, reject_reason as reason, count(*) as count from tokens group by all")
    )
    return steps


def _files(tables: Tables) -> list[Step]:
    (row,) = tables.rows(
        "select count(*) filter (status = 'present' and file_id is not null) as held, "
        "count(distinct file_id) filter (status = 'present') as distinct_ones, "
        "count(*) filter (status <> 'present') as gone from sources"
    )
    reasons = [Reason("copies", "files with the very bytes of another", row["held"] - row["distinct_ones"])]
    if row["gone"]:
        reasons.append(Reason("gone", "listed once, and not there any more", row["gone"]))
    return [Step("files", "all", row["held"] + row["gone"], row["distinct_ones"], [r for r in reasons if r.count])]


def _by_kind(name: str, rows: list[dict[str, Any]]) -> list[Step]:
    found = []
    for kind in sorted({row["kind"] for row in rows}):
        mine = [row for row in rows if row["kind"] == kind]
        reasons = [
            Reason(row["reason"], stages.REASONS.get(row["reason"], ""), row["count"])
            for row in sorted(mine, key=lambda row: -row["count"])
            if row["reason"] is not None
        ]
        seen = sum(row["count"] for row in mine)
        found.append(Step(name, kind, seen, seen - sum(reason.count for reason in reasons), reasons))
    return found


def runs(tables: Tables) -> list[dict[str, Any]]:
    """The newest runs, their phases as they were recorded."""
    found = []
    for record in newest_first(tables.catalog.root):
        found.append(record)
        if len(found) == _SHOWN_RUNS:
            break
    return found


def spent(config: RunConfig, tables: Tables) -> list[dict[str, Any]]:
    """What captions took, by captioner and model: tokens, seconds of requests, money where there are prices."""
    found = tables.rows(
        "select captioner, model, count(*) as captions, sum(tokens_in) as tokens_in, sum(tokens_out) as tokens_out, "
        "sum(seconds) as seconds from captions where tokens_out is not null group by all order by all"
    )
    for row in found:
        how = config.caption.all.get(row["captioner"])
        row["costs"] = None if how is None else how.resources.costs(row["tokens_in"] or 0, row["tokens_out"] or 0)
    return found
