"""Scored media of a kind, with what the rules read of them."""

import pyarrow as pa

from tokenmill import stages
from tokenmill.pipeline.looking.query import Tables


def scored(tables: Tables, kind: str, rules: dict[str, str]) -> pa.Table:
    """media_id, `scored` and what the rules read, of media that are kept, or that a rule rejected or left open."""
    names = dict.fromkeys(
        each for name, keep in rules.items() for each in stages.Rule(name, keep, stages.MEDIA).columns
    )
    columns = ", ".join(f'"{name}"' for name in dict.fromkeys(("media_id", "scored", *names)))
    return tables.arrow(
        f"select {columns} from media where kind = ? and (reject_reason is null or starts_with(reject_detail, ?))",
        kind,
        stages.RULE,
    )
