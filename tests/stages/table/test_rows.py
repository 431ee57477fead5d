import io

import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from tokenmill.stages.table.rows import MAX_DETAIL_CHARS, RowError, pick, replace, words


def test_words_hold_no_address_and_stay_on_one_line() -> None:
    try:
        Image.open(io.BytesIO(b"nothing"))
    except UnidentifiedImageError as error:
        assert words(error) == "cannot identify image file"
    assert words(ValueError("a\n b")) == "a b"
    assert words(ValueError()) == "ValueError"


def test_detail_is_cut() -> None:
    assert len(RowError("corrupt", "x" * 1000).columns["reject_detail"]) == MAX_DETAIL_CHARS


def test_replace_keeps_places_and_nullability() -> None:
    table = pa.table({"a": [1, 2], "b": ["x", "y"], "c": [1.0, 2.0]})
    writes = pa.schema([pa.field("b", pa.string(), nullable=False), pa.field("d", pa.int32())])
    result = replace(table, writes, {"b": ["z", "z"], "d": [None, 4]}, drops=("c",))
    assert result.column_names == ["a", "b", "d"]
    assert not result.schema.field("b").nullable
    assert result.to_pylist()[1] == {"a": 2, "b": "z", "d": 4}
    assert pick(writes, "d").names == ["d"]
