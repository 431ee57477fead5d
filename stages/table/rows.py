"""How a stage rewrites the rows of a table: columns replaced and dropped, one bad row rejected, the rest untouched.

A data error never leaves a stage as an exception: it becomes `reject_reason` and `reject_detail` on its own row. One
damaged file that emptied its whole batch is what cost another pipeline half of its good images.
"""

import errno
import re
from typing import Any

import pyarrow as pa

from tokenmill.stages.table.text import clean

MAX_DETAIL_CHARS = 300
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EROFS)


class RowError(Exception):
    """Raised inside a stage to reject the row at hand; never leaves the stage.

    `reason` is a short stable code, `detail` says what happened, `found` holds column values known all the same.
    """

    def __init__(self, reason: str, detail: str, **found: Any):
        super().__init__(f"{reason}: {detail}")
        said = clean(detail, MAX_DETAIL_CHARS)
        self.columns: dict[str, Any] = {**found, "reject_reason": reason, "reject_detail": said}


def unreadable(error: Exception) -> RowError:
    """Why a row's bytes cannot be had. Raises `error` itself where it is this machine's: no file is rejected for it."""
    if isinstance(error, MemoryError) or isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        raise error
    if isinstance(error, FileNotFoundError):
        return RowError("vanished", words(error))
    return RowError("no_permission" if isinstance(error, PermissionError) else "unreadable", words(error))


def words(error: BaseException) -> str:
    """The library's own words on one line, without memory addresses, so that two runs say the same."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "", text).split())[:MAX_DETAIL_CHARS]


def without(schema: pa.Schema, *names: str) -> pa.Schema:
    """`schema` minus some fields."""
    return pa.schema([field for field in schema if field.name not in names])


def pick(schema: pa.Schema, *names: str) -> pa.Schema:
    """The named fields of `schema`."""
    return pa.schema([schema.field(name) for name in names])


def values_of(table: pa.Table, schema: pa.Schema) -> dict[str, list]:
    """Python lists of the columns in `schema`; nulls where the table lacks one."""
    return {
        name: table[name].to_pylist() if name in table.column_names else [None] * table.num_rows
        for name in schema.names
    }


def replace(table: pa.Table, writes: pa.Schema, values: dict[str, list], drops: tuple[str, ...] = ()) -> pa.Table:
    """`table` minus `drops`, with the columns of `writes` replaced in place, or added at the end, from `values`."""
    fields = {field.name: field for field in table.schema if field.name not in drops}
    columns: dict[str, pa.Array | pa.ChunkedArray] = {name: table[name] for name in fields}
    for field in writes:
        fields[field.name] = field
        column = values[field.name]
        columns[field.name] = column if isinstance(column, pa.Array) else pa.array(column, field.type)
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(list(fields.values())))
