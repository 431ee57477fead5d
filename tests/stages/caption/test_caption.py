import pyarrow as pa

from tokenmill.stages.caption.caption import Caption, tidy
from tokenmill.stages.caption.config import CaptionConfig
from tokenmill.stages.table.columns import CAPTIONS

READS = Caption.reads


def _table(*captions: str | None) -> pa.Table:
    rows = [
        {"media_id": str(i), "kind": "image", "uri": "u", "source_caption": text} for i, text in enumerate(captions)
    ]
    return pa.Table.from_pylist(rows, schema=READS)


def test_source_captions_are_tidied(check_stage) -> None:
    table = _table("  a  cat\n\ton a\u00a0mat\0 ", "", None, " \n", "x")
    output = check_stage(Caption(CaptionConfig()), table)
    assert output.column_names == [name for name in CAPTIONS.names if name not in ("fingerprint", "run_id")]
    assert output["caption"].to_pylist() == ["a cat on a mat", None, None, None, "x"]
    assert set(output["captioner"].to_pylist()) == {"source"}
    assert output["reject_reason"].null_count == 5


def test_no_captioner_gives_none(check_stage) -> None:
    output = check_stage(Caption(CaptionConfig(captioner="none")), _table("a", "b", "c", "d", "e"))
    assert output["caption"].null_count == 5 and output["captioner"].to_pylist() == ["none"] * 5


def test_long_captions_end_at_a_word() -> None:
    assert tidy("one two three", 13) == "one two three"
    assert tidy("one two three", 12) == "one two"
    assert tidy("one two three", 7) == "one two"
    assert tidy("incomprehensibilities", 5) == "incom"
    for limit in range(1, 30):
        assert len(tidy("the quick brown fox jumps", limit) or "") <= limit


def test_rejected_rows_get_no_caption() -> None:
    table = _table("a", "b").append_column("reject_reason", pa.array([None, "duplicate"]))
    output = Caption(CaptionConfig())(table)
    assert output["caption"].to_pylist() == ["a", None]
    assert output["reject_reason"].to_pylist() == [None, "duplicate"]
