"""Rows of a table whose medium stands in no row of others: what is left to do, by the driver or by the cluster.

Ids are hashes, so their first digits cut every table into even parts. A task of the cluster takes one part of all
tables, reads their ids with that beginning and returns the rows that are left: no shuffle, and the driver holds only
what is to be done. Each part reads the id columns whole, so there are as few parts as the memory of a task allows.
"""

import math
import sys
from itertools import product

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.scans import shards
from tokenmill.pipeline.catalog.tables import Catalog, Table
from tokenmill.pipeline.config import Cluster
from tokenmill.stages.select.duplicates import KEPT, duplicate_ids

_DIGITS = "0123456789abcdef"
_NUM_CPUS = 0.5

Rows = tuple[Table, pc.Expression]
_Files = tuple[list[str], pc.Expression]


def unmatched(left: Rows, columns: list[str], others: list[Rows], config: Cluster) -> pa.Table:
    """`columns` (with media_id) of the rows of `left` whose media_id is in none of `others`, in no order to rely on.

    More rows than `config.join_rows` are joined by the cluster, where there is one.
    """
    num_rows = max(table.count() for table, _ in (left, *others))
    ray = sys.modules.get("ray")
    if num_rows <= config.join_rows or ray is None or not ray.is_initialized():
        rows = left[0].scan(columns, left[1])
        for table, where in others:
            rows = _without(rows, table.scan(["media_id"], where))
        return rows
    digits = math.ceil(math.log(num_rows / config.join_rows, len(_DIGITS)))
    of_left, *of_others = ((table.files(), where) for table, where in (left, *others))
    task = ray.remote(num_cpus=_NUM_CPUS)(_part)
    schema = left[0].schema
    parts = [
        task.remote(of_left, schema, columns, of_others, "".join(prefix)) for prefix in product(_DIGITS, repeat=digits)
    ]
    return pa.concat_tables(ray.get(parts))


def kept_without(catalog: Catalog, columns: list[str], done: Rows, kept: pa.Array | None, config: Cluster) -> pa.Table:
    """`columns` (with media_id) of the media that go on and stand in no row of `done`. `kept`: ids of those that go on;
    null: those that are not rejected, and no duplicates of others.
    """
    if kept is not None:
        return unmatched((catalog.media, pc.field("media_id").isin(kept)), columns, [done], config)
    aside = catalog.duplicates, pc.field("method") != KEPT
    return unmatched((catalog.media, pc.field("reject_reason").is_null()), columns, [aside, done], config)


def kept_ids(catalog: Catalog) -> pa.Array:
    """Ids of the media that go on."""
    ids = catalog.media.scan(["media_id"], pc.field("reject_reason").is_null())["media_id"].unique()
    return ids.filter(pc.invert(pc.is_in(ids, value_set=duplicate_ids(catalog))))


def _without(rows: pa.Table, other: pa.Table) -> pa.Table:
    return rows.filter(pc.invert(pc.is_in(rows["media_id"], value_set=other["media_id"].combine_chunks())))


def _part(left: _Files, schema: pa.Schema, columns: list[str], others: list[_Files], prefix: str) -> pa.Table:
    rows = _beginning(left, schema, columns, prefix)
    for other in others:
        rows = _without(rows, _beginning(other, None, ["media_id"], prefix))
    return rows


def _beginning(part: _Files, schema: pa.Schema | None, columns: list[str], prefix: str) -> pa.Table:
    """Rows whose id begins with `prefix`; `schema` fills in columns that older files lack."""
    files, where = part
    if not files:
        return pa.schema(
            [(name, pa.string()) if schema is None else schema.field(name) for name in columns]
        ).empty_table()
    return shards(files, schema).to_table(columns=columns, filter=where & pc.starts_with(pc.field("media_id"), prefix))
