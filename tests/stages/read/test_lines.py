"""Lines: a malformed one stands in its place with what is wrong, and costs no other."""

import json
from typing import Any

import pytest

from tokenmill.stages.read import lines
from tokenmill.stages.read.containers import members
from tokenmill.stages.table.rows import RowError

FINE = b'{"file": "a.jpg", "caption": "fine"}'


def said(found: Any) -> Any:
    return found.columns["reject_detail"] if isinstance(found, RowError) else found


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (b"not json", "not JSON: Expecting value"),
        (b'{"file": "b.jpg", "caption": "cut', "not JSON: Unterminated string"),
        (b"[" * 100_000, "not JSON: maximum recursion depth exceeded"),
        (b"[1]", "not a JSON object but a list"),
        (b"3", "not a JSON object but a number"),
        (b'{"caption": "no file"}', "no field 'file'"),
        (b'{"file": "b.jpg"}', "no field 'caption' or 'captions'"),
        (b'{"file": 3, "caption": "x"}', "field 'file' is no text but a number"),
        (b'{"file": "b.jpg", "captions": 3}', "field 'captions' is no list but a number"),
        (b'{"file": "b.jpg", "captions": [{"en": "x"}]}', "the caption is no text but an object"),
        (b'{"file": "b.jpg", "caption": false}', "the caption is no text but a truth value"),
        (b'{"file": "b.jpg", "caption": "caf\xe9"}', "not UTF-8: invalid continuation byte at byte 33"),
    ],
)
def test_a_malformed_line_of_captions(line, detail):
    found = list(lines.captions([b"\xef\xbb\xbf" + FINE + b"\n", b" \n", line + b"\n", FINE]))
    assert [(number, said(each)) for number, each in found if number != 3] == [
        (1, ("a.jpg", "fine")),
        (4, ("a.jpg", "fine")),
    ]
    assert found[1][0] == 3 and said(found[1][1]).startswith(detail)


@pytest.mark.parametrize("line", ['{"file": "a", "caption": null}', '{"file": "a", "captions": []}'])
def test_a_line_may_say_that_there_is_no_caption(line):
    assert list(lines.captions([line.encode()])) == [(1, ("a", None))]


def test_malformed_lines_get_a_bounded_number_of_rows():
    def told(count: int) -> list[tuple[str, str]]:
        malformed = (each for each in lines.captions(b"x\n" for _ in range(count)))
        return list(lines.told((number, error) for number, error in malformed if isinstance(error, RowError)))

    rows = told(100_000)
    assert len(rows) == lines.MAX_TOLD + 1 and rows[0][0] == "line 1"
    assert rows[-1] == ("line 1001 and after", "99000 more malformed lines")
    assert len(told(lines.MAX_TOLD)) == lines.MAX_TOLD


def test_a_malformed_line_of_a_table():
    text = ["url,n\n", "a,1\n", "b,1,3,4\n", "c,1,,\n", "d\n", 'e,"' + "x" * (1 << 17) + '"\n']
    fields = [said(row) for row in lines.csv_rows(text, ",")]
    assert fields[:4] == [
        {"url": "a", "n": "1"},
        "4 fields where the first line names 2",
        {"url": "c", "n": "1"},
        {"url": "d", "n": None},
    ]
    assert len(fields[4]["n"]) == 1 << 17


def test_a_field_without_an_end_costs_what_it_holds(monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE", 64)
    text = ["url\n", "a\n", '"b\n', *["x" * 30 + "\n"] * 3, "c\n"]
    found = [said(row) for row in lines.csv_rows(text, ",")]
    assert found[0] == {"url": "a"} and found[1].startswith("not CSV: field larger than") and found[-1] == {"url": "c"}
    with pytest.raises(RowError, match="corrupt_container: no names of columns"):
        list(lines.csv_rows(["x" * 100 + "\n", "a\n"], ","))


def test_a_malformed_first_line_costs_that_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('[]\n{"id": 1}\n{"text": "one"}\n{"text": "two", "id": 2}\n')
    found = [(member.name, member.text, member.error and member.error.columns) for member in members(str(path), "text")]
    assert [(name, text) for name, text, _ in found] == [
        ("000000000", None),
        ("000000001", None),
        ("000000002", "one"),
        ("000000003", "two"),
    ]
    reasons = [error and error["reject_reason"] for _, _, error in found]
    assert reasons == ["malformed_line", "empty_file", None, None]
    path.write_text("".join(json.dumps({"id": number}) + "\n" for number in range(1000)) + '{"text": "late"}\n')
    with pytest.raises(RowError, match="no_column: none holds text"):
        list(members(str(path), "text"))


def test_a_line_that_is_malformed_in_another_way_is_another(tmp_path):
    path, ids = tmp_path / "captions.jsonl", []
    for text in ("not json\n", "[1]\n", "[1]\n"):
        path.write_text(text)
        (member,) = members(str(path), "captions")
        assert member.name == "line 1" and member.error.columns["reject_reason"] == "malformed_line"
        ids.append(member.error.columns["media_id"])
    assert ids[0] != ids[1] == ids[2]
