"""Codes by kind: how many, in which grids, and how much of the codebook is in use."""

from typing import Any

from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.looking.query import Tables
from tokenmill.tokenizer.vision import weights


def token_figures(config: RunConfig, tables: Tables, sample: int) -> list[dict[str, Any]]:
    """By kind: media, codes, the most frequent grids; and of `sample` media how many codes of the codebook are in
    use, and how evenly: 2 to the entropy, as a share.
    """
    codebook_size = weights.codebook_size(config.tokenize.model)
    found = tables.rows(
        "select kind, count(*) as media, sum(grid_t * grid_h * grid_w)::bigint as codes, "
        "avg(len(caption)) as caption_chars from tokens where reject_reason is null group by all order by kind"
    )
    for row in found:
        row["grids"] = tables.rows(
            "select grid_t, grid_h, grid_w, count(*) as count from tokens where reject_reason is null and kind = ? "
            "and grid_h > 0 group by all order by count desc, grid_t, grid_h, grid_w limit 5",
            row["kind"],
        )
        used = tables.rows(
            "with few as (select codes from tokens where reject_reason is null and kind = ? order by media_id "
            "limit ?), each as (select unnest(codes) as code from few), shares as "
            "(select count(*) / sum(count(*)) over () as share from each group by code) "
            "select count(*) as used, -sum(share * log2(share)) as bits from shares",
            row["kind"],
            sample,
        )[0]
        row["used"] = used["used"] / codebook_size if used["used"] else None
        row["even"] = 2 ** used["bits"] / codebook_size if used["bits"] is not None else None
    return found
