"""Scored media of a kind, with what the rules read of them."""

import pyarrow as pa

from tokenmill import stages
from tokenmill.pipeline.looking.query import Tables

_ALWAYS = ("media_id", "kind", "scored", "reject_reason", "reject_detail")


def scored(tables: Tables, kind: str, rules: dict[str, str]) -> pa.Table:
    """media_id, kind, `scored`, verdicts and what the rules read, of media that are kept, or that a rule rejected or
    left open.
    """
    names = dict.fromkeys(
        each for name, keep in rules.items() for each in stages.Rule(name, keep, stages.MEDIA).columns
    )
    columns = ", ".join(f'"{name}"' for name in dict.fromkeys((*_ALWAYS, *names)))
    return tables.arrow(
        f"select {columns} from media where kind = ? and (reject_reason is null or starts_with(reject_detail, ?))",
        kind,
        stages.RULE,
    )


def captions_by(tables: Tables, captioner: str, rules: dict[str, str]) -> pa.Table:
    """media_id, caption, what the rules read and an empty `scored`, of captions that count or that a rule rejected."""
    names = dict.fromkeys(["media_id", *stages.columns_judged(rules)])
    rows = tables.arrow(
        f"select {', '.join(names)} from captions where captioner = ? and caption is not null "
        "and (reject_reason is null or starts_with(reject_detail, ?))",
        captioner,
        stages.RULE,
    )
    rows = stages.judge_captions(rows, rules)  # which measures what a rule reads and a row does not say yet
    return rows.append_column("scored", pa.nulls(rows.num_rows, pa.string()))
