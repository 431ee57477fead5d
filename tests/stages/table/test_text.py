"""Text from outside: what could not be stored, or would act on who sees it, goes; all else stays."""

import pyarrow as pa
import pytest

from tokenmill.stages.table.text import clean, clean_fields, clean_name

RIGHT_TO_LEFT = "\u202e"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("عربى and 中文 and 👩‍🚀", "عربى and 中文 and 👩‍🚀"),
        ("a\x00b\x1bc\x7f", "abc"),
        (f"name{RIGHT_TO_LEFT}gpj.exe", "namegpj.exe"),
        ("\u2066isolated\u2069", "isolated"),
        ("\ud800 half", "\ufffd half"),
    ],
)
def test_clean(text, expected):
    assert clean(text) == expected
    assert pa.array([clean(text)]).to_pylist() == [expected]


def test_a_length_is_kept():
    assert clean("x" * 10, 4) == "xxxx" and clean("\x00" * 10 + "x", 4) == ""


def test_names_stay_apart():
    names = ["a.png", "a\udcff.png", "a\udcfe.png", "a\x00.png", f"a{RIGHT_TO_LEFT}.png", "ä.png"]
    made = [clean_name(name) for name in names]
    assert len(set(made)) == len(names) and made[0] == "a.png" and made[-1] == "ä.png"
    assert made[1] == r"a\udcff.png" and pa.array(made).to_pylist() == made


def test_documents_are_cleaned_through_and_through():
    assert clean_fields({"a\x00": ["\ud800", {"b": "c\x07"}, 3, None]}) == {"a": ["\ufffd", {"b": "c"}, 3, None]}
