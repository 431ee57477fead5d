"""Lines -> rows: of a .jsonl, a .csv or .tsv, and of a captions.jsonl. A malformed line costs that line.

It stands in its place as the RowError that says what is wrong with it. What is wrong with a line is said in words of
ours or of the parser's, never with the line: it may hold anything, at any length.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from typing import IO, Any, AnyStr

from tokenmill.stages.table.rows import RowError, words
from tokenmill.stages.table.text import MAX_CAPTION_CHARS, clean

MAX_TOLD = 1_000  # malformed lines of one captions.jsonl that get a row of their own
MAX_LINE = 1 << 25  # characters, or bytes
_REST = "rest"
_FIELDS_OF_CAPTIONS = frozenset({"caption", "captions"})
_KINDS = {bool: "a truth value", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}

Caption = tuple[str, str | None]  # the name of a file, and what is said of it


def bounded(file: IO[AnyStr]) -> Iterator[AnyStr]:
    """The lines of a file. One that is too long ends early, and the rest of it is passed over."""
    while line := file.readline(MAX_LINE):
        yield line
        while line and len(line) == MAX_LINE and line[-1:] not in ("\n", b"\n"):
            line = file.readline(MAX_LINE)


def json_rows(lines: Iterable[str]) -> Iterator[dict[str, Any] | RowError]:
    """The objects of a .jsonl; blank lines are passed over."""
    for line in lines:
        if not line.isspace():
            try:
                yield _object(line)
            except RowError as error:
                yield error


def csv_rows(lines: Iterable[str], delimiter: str) -> Iterator[dict[str, Any] | RowError]:
    """The lines of a table by the names in its first. Raises RowError for a first line that gives none."""
    csv.field_size_limit(MAX_LINE)
    table = csv.DictReader(lines, delimiter=delimiter, restkey=_REST)
    try:
        names = table.fieldnames or []
    except csv.Error as error:
        raise RowError("corrupt_container", f"no names of columns in the first line: {words(error)}") from None
    while True:
        try:
            row = next(table, None)
        except csv.Error as error:
            yield RowError("malformed_line", f"not CSV: {words(error)}")
            continue
        if row is None:
            return
        rest = row.pop(_REST, []) if _REST not in names else []
        if any(rest):
            yield RowError("malformed_line", f"{len(names) + len(rest)} fields where the first line names {len(names)}")
        else:
            yield {str(key): value for key, value in row.items()}


def captions(lines: Iterable[bytes]) -> Iterator[tuple[int, Caption | RowError]]:
    """The lines of a captions.jsonl by their numbers; blank ones are passed over."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield number, _caption(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
            except RowError as error:
                yield number, error


def told(malformed: Iterable[tuple[int, RowError]]) -> Iterator[tuple[str, str]]:
    """Names and details of the rows of malformed lines: one for each of the first, one for all the rest."""
    num_more = first_more = 0
    for count, (number, error) in enumerate(malformed):
        if count < MAX_TOLD:
            yield f"line {number}", error.columns["reject_detail"]
            continue
        first_more = first_more or number
        num_more += 1
    if num_more:
        yield f"line {first_more} and after", f"{num_more} more malformed lines"


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        raise RowError("malformed_line", f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:
        raise RowError("malformed_line", f"not JSON: {words(error)}") from None
    if not isinstance(found, dict):
        raise RowError("malformed_line", f"not a JSON object but {_kind(found)}")
    return found


def _caption(line: bytes) -> Caption:
    """`{"file": ..., "caption": ...}`, or a list "captions", of which the first counts."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise RowError("malformed_line", f"not UTF-8: {error.reason} at byte {error.start}") from None
    fields = _object(text)
    if "file" not in fields:
        raise RowError("malformed_line", "no field 'file'")
    if not fields.keys() & _FIELDS_OF_CAPTIONS:
        raise RowError("malformed_line", "no field 'caption' or 'captions'")
    several = fields.get("captions") or [fields.get("caption")]
    if not isinstance(several, list):
        raise RowError("malformed_line", f"field 'captions' is no list but {_kind(several)}")
    name, said = fields["file"], several[0]
    if not isinstance(name, str):
        raise RowError("malformed_line", f"field 'file' is no text but {_kind(name)}")
    if not isinstance(said, str | None):
        raise RowError("malformed_line", f"the caption is no text but {_kind(said)}")
    return name, None if said is None else clean(said, MAX_CAPTION_CHARS).strip()


def _kind(value: Any) -> str:
    """What a JSON value is."""
    return _KINDS.get(type(value), "null")
