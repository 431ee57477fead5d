"""Columns of Arrow tables: where two differ, which values another one holds, new values in place of old ones."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

NO_IDS = pa.array([], pa.string())
_SMALLER = 8


def differ(one: pa.ChunkedArray, other: pa.ChunkedArray) -> pa.ChunkedArray:
    """bool: where two columns differ; null differs from every value and from no null."""
    nulls_differ = pc.xor(pc.is_null(one), pc.is_null(other))
    return pc.or_(nulls_differ, pc.fill_null(pc.not_equal(one, other), False))


def is_in(values: Any, known: pa.Array | pa.ChunkedArray) -> Any:
    """bool: which `values` stand in `known`."""
    known = known.combine_chunks() if isinstance(known, pa.ChunkedArray) else known
    return pc.is_in(values, value_set=known)


def index_in(values: pa.ChunkedArray, known: pa.Array) -> pa.Array:
    """int64: where each of `values` stands in `known`, whose values are distinct; null for nowhere. As pc.index_in, but
    the smaller of the two is hashed, for that is what takes the time when it is asked for part after part.
    """
    if len(values) * _SMALLER > len(known):
        return pc.index_in(values, value_set=known).cast(pa.int64()).combine_chunks()
    distinct_values = values.unique()
    met = pc.index_in(known, value_set=distinct_values)
    places = pc.indices_nonzero(pc.is_valid(met)).cast(pa.int64())
    at = np.full(len(distinct_values), -1, np.int64)
    at[met.drop_null().to_numpy()] = places.to_numpy()
    of_value = pc.index_in(values, value_set=distinct_values).combine_chunks().to_numpy(zero_copy_only=False)
    found = at[of_value]
    return pa.array(found, pa.int64(), mask=found < 0)


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
