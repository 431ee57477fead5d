"""Verdicts of captioners' rules on stored captions: what is to change, and the edit that changes it."""

from collections.abc import Mapping
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill import stages
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.refresh.arrow import differ, distinct


def judged_otherwise(config: RunConfig, catalog: Catalog) -> dict[str, pa.Array]:
    """Ids of media of which a caption has another verdict by the rules of its captioner, by captioner."""
    found = {}
    for name, rules in _rules(config).items():
        columns = ["media_id", *stages.columns_judged(rules)]
        rows = catalog.captions.scan(columns, pc.field("captioner") == name)
        if rows.num_rows:
            now = stages.judge_captions(rows, rules)
            is_other = pc.or_(*(differ(rows[column], now[column]) for column in ("reject_reason", "reject_detail")))
            if len(ids := distinct(rows.filter(is_other)["media_id"])):
                found[name] = ids
    return found


def rejudge(catalog: Catalog, rejudged: Mapping[str, pa.Array], config: RunConfig, run_id: str) -> None:
    """Write the verdicts of the rules of now on the stored columns of these captions."""
    for name, ids in rejudged.items():
        where = (pc.field("captioner") == name) & pc.field("media_id").isin(ids)
        note = {"run_id": run_id, "what": "caption rules changed"}
        catalog.captions.edit(where, partial(stages.judge_captions, rules=_rules(config)[name]), note)


def _rules(config: RunConfig) -> dict[str, dict[str, str]]:
    part = config.caption.what
    return {name: part.all[name].verdicts for name in dict.fromkeys(["source", *part.order])}
