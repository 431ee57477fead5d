"""Columns of Arrow tables: where two differ, which values another one holds, new values in place of old ones."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

NO_IDS = pa.array([], pa.string())


def differ(one: pa.ChunkedArray, other: pa.ChunkedArray) -> pa.ChunkedArray:
    """bool: where two columns differ; null differs from every value and from no null."""
    nulls_differ = pc.xor(pc.is_null(one), pc.is_null(other))
    return pc.or_(nulls_differ, pc.fill_null(pc.not_equal(one, other), False))


def is_in(values: Any, known: pa.Array | pa.ChunkedArray) -> Any:
    """bool: which `values` stand in `known`."""
    known = known.combine_chunks() if isinstance(known, pa.ChunkedArray) else known
    return pc.is_in(values, value_set=known)


def without(values: Any, known: pa.Array | pa.ChunkedArray) -> Any:
    """The `values` that do not stand in `known`."""
    return values.filter(pc.invert(is_in(values, known)))


def count(mask: Any) -> int:
    """How often `mask` is true."""
    return pc.sum(mask).as_py() or 0


def distinct(*columns: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The values of all columns, each once."""
    whole = [column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column for column in columns]
    return pa.concat_arrays(whole).unique()


def set_columns(rows: pa.Table, **columns: pa.Array | pa.ChunkedArray) -> pa.Table:
    """`rows` with other values in these columns."""
    for name, values in columns.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, values)
    return rows


def repeated(value: str, rows: pa.Table) -> pa.Array:
    """`value` for each of `rows`."""
    return pa.repeat(pa.scalar(value, pa.string()), rows.num_rows)
