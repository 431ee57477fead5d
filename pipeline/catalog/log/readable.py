"""Whether a table, and a version of it, can be read: columns of other releases, files deleted since.

A later release may add nullable columns. A table without them reads as nulls, and the next write adds them in a version
of their own; every other difference is refused, because an older release would drop what it does not know.
"""

from typing import Any

import deltalake
import pyarrow as pa
from deltalake import Field

FORGOTTEN = "forgotten"  # the note of commits that take media out for good
_NEWER = "it was written by a newer tokenmill: install that release, or name another root"
_OLDER = "it was written by an older tokenmill: keep to that release, or make the tables anew under another root"


def delta_schema(schema: pa.Schema) -> pa.Schema:
    """`schema` as the Delta log declares it: no unsigned codes, and every column nullable."""
    widened = [
        field.with_type(pa.list_(pa.int32()))
        if pa.types.is_list(field.type) and pa.types.is_integer(field.type.value_type)
        else field
        for field in schema
    ]
    return pa.schema([field.with_nullable(True) for field in widened])


def lacking(theirs: deltalake.Schema, ours: pa.Schema) -> list[Field]:
    """Columns of `ours` that a table with schema `theirs` does not have."""
    there = {field.name for field in theirs.fields}
    return [field for field in deltalake.Schema.from_arrow(delta_schema(ours)).fields if field.name not in there]


def misfit(theirs: deltalake.Schema, ours: pa.Schema) -> str | None:
    """Why a table with schema `theirs` cannot be used, and what to do; null when it can."""
    known = {field.name: field.type for field in deltalake.Schema.from_arrow(delta_schema(ours)).fields}
    if unknown := [field.name for field in theirs.fields if field.name not in known]:
        return f"has columns that this release does not know: {', '.join(unknown)}; {_NEWER}"
    if other := [field for field in theirs.fields if field.type != known[field.name]]:
        shown = ", ".join(f"{field.name} ({_name(field.type)}, not {_name(known[field.name])})" for field in other)
        return f"has columns of types that this release does not know: {shown}; {_NEWER}"
    if required := [field.name for field in lacking(theirs, ours) if not ours.field(field.name).nullable]:
        return f"lacks columns that this release needs: {', '.join(required)}; {_OLDER}"
    return None


def _name(type_: object) -> str:
    return getattr(type_, "type", str(type_))  # a primitive type's name is shorter than its repr


def lost(num_lost: int, num_files: int, since: list[dict[str, Any]]) -> str:
    """Why files of a past version are gone, from the commits made `since`, and what to do."""
    vacuumed = any(commit["operation"].startswith("VACUUM") for commit in since)
    # Where the newest version held no such medium, `forget` deletes files and commits nothing.
    forgot = not vacuumed or any(commit.get("what") == FORGOTTEN for commit in since)
    found = {
        "media were forgotten (`tokenmill forget`)": forgot,
        "old versions vacuumed (`tokenmill vacuum`)": vacuumed,
    }
    events = " and ".join(event for event, happened in found.items() if happened)
    return (
        f"cannot be read any more: {num_lost} of its {num_files} files were deleted; since then "
        f"{events}; read and train on the newest version: leave --version out, or choose a later one from "
        "`tokenmill log CONFIG`"
    )
