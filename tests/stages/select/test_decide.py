import pyarrow as pa
import pytest
from pydantic import ValidationError

from tokenmill.stages.select.decide import Decide, DecideConfig, decide
from tokenmill.stages.select.votes import media_votes
from tokenmill.stages.table.columns import MEDIA
from tokenmill.storage.errors import UserError

CONFIG = DecideConfig(
    image_rules={"resolution": "min(width_px, height_px) >= 512", "aspect": "aspect <= 5"},
    video_rules={"duration": "duration_s >= 2", "motion": "0.04 <= flow <= 0.5"},
)


def _table(*rows: dict) -> pa.Table:
    base = {"file_id": "f", "uri": "u", "fingerprint": "p", "run_id": "r"}
    return pa.Table.from_pylist([{**base, "media_id": str(i), **row} for i, row in enumerate(rows)], schema=MEDIA)


TABLE = _table(
    {"kind": "image", "width_px": 600, "height_px": 700, "aspect": 1.2},
    {"kind": "image", "width_px": 500, "height_px": 5000, "aspect": 10.0},
    {"kind": "video", "duration_s": 3.0, "flow": 0.1},
    {"kind": "video", "duration_s": 3.0, "flow": None},
    {"kind": "video", "duration_s": 1.0, "flow": None},
    {"kind": "image", "reject_reason": "corrupt", "reject_detail": "image file is truncated"},
    {"kind": "unknown", "reject_reason": "unknown_format", "reject_detail": "..."},
)


def test_decide(check_stage) -> None:
    output = check_stage(Decide(CONFIG), TABLE)
    assert output.schema.equals(MEDIA)
    assert list(zip(output["reject_reason"].to_pylist(), output["reject_detail"].to_pylist(), strict=True)) == [
        (None, None),
        ("resolution", "rule: min(width_px, height_px) >= 512"),
        (None, None),
        ("motion", "rule: 0.04 <= flow <= 0.5 (not scored: flow)"),
        ("duration", "rule: duration_s >= 2"),
        ("corrupt", "image file is truncated"),
        ("unknown_format", "..."),
    ]


def test_deciding_again_changes_nothing() -> None:
    once = decide(TABLE, CONFIG)
    assert decide(once, CONFIG).equals(once)


def test_stored_verdicts_follow_new_rules_both_ways() -> None:
    once = decide(TABLE, CONFIG)
    loose = DecideConfig(image_rules={}, video_rules={"renamed": "duration_s >= 0.5"})
    again = decide(once, loose)
    assert again["reject_reason"].to_pylist() == [None, None, None, None, None, "corrupt", "unknown_format"]
    assert again.equals(decide(TABLE, loose))
    assert decide(again, CONFIG).equals(once)


@pytest.mark.parametrize("field", ["image_rules", "video_rules"])
def test_wrong_rules_are_found_when_the_config_is_made(field: str) -> None:
    with pytest.raises(ValidationError, match="did you mean 'sharpness'"):
        DecideConfig(**{field: {"soft": "sharpnes > 100"}})
    with pytest.raises(ValidationError, match="write what is kept, such as 'sharpness >= 100'"):
        DecideConfig(**{field: {"soft": 100}})
    with pytest.raises(ValidationError, match="lower case"):
        DecideConfig(**{field: {"Too Small": "aspect < 5"}})
    with pytest.raises(ValidationError, match="reject_reason"):
        DecideConfig(**{field: {"loop": "reject_reason == 'x'"}})


def test_default_rules_are_those_of_emu3() -> None:
    rows = decide(_table({"kind": "image", "width_px": 511, "height_px": 900, "aspect": 1.8}), DecideConfig())
    assert rows["reject_reason"].to_pylist() == ["resolution"]


def test_a_persons_vote_stands_above_rules_and_can_be_taken_back(tmp_path) -> None:
    file = tmp_path / "media.jsonl"
    lines = [("0", "reject"), ("1", "reject"), ("1", "keep"), ("3", "keep"), ("4", "reject"), ("5", "keep")]
    file.write_text("".join(f'{{"media_id": "{name}", "vote": "{vote}"}}\n' for name, vote in lines))
    voted = Decide(CONFIG.model_copy(update={"votes": str(file)}))(TABLE)
    assert voted["reject_reason"].to_pylist() == [
        "voted_out", None, None, None, "voted_out", "corrupt", "unknown_format"
    ]  # fmt: skip
    assert Decide(CONFIG)(voted).equals(decide(TABLE, CONFIG)), "without votes the rules decide again"


@pytest.mark.parametrize("line", ["no json", '{"media_id": "1"}', '{"media_id": "1", "vote": "maybe"}', "[1]"])
def test_what_is_no_vote_is_named_with_its_line(tmp_path, line) -> None:
    file = tmp_path / "media.jsonl"
    file.write_text('{"media_id": "1", "vote": "keep"}\n\n' + line)
    with pytest.raises(UserError, match=r"media\.jsonl: line 3"):
        media_votes(str(file))
    with pytest.raises(UserError, match="no votes there"):
        media_votes(str(tmp_path / "none.jsonl"))
