"""Expensive scores run only while they can change a verdict."""

import pyarrow as pa
import pytest

from tokenmill.stages.select.decide import NOT_SCORED, DecideConfig, decide
from tokenmill.stages.select.expensive import Lazy, add_scored
from tokenmill.stages.table.columns import MEDIA

TEXT, CLIP = "text:1", "clip:1"
RULES = {
    "large": "width_px >= 512",
    "pleasant": "aesthetic >= 5.5 or (text_area <= 0.1 and chroma >= 2)",
}


def media(**columns) -> pa.Table:
    count = len(next(iter(columns.values())))
    filled = {field.name: columns.get(field.name, [None] * count) for field in MEDIA}
    filled["kind"] = columns.get("kind", ["image"] * count)
    return pa.table(filled, schema=MEDIA)


def lazy(*scorers: str, all_scores: bool = False) -> Lazy:
    return Lazy(RULES, {}, scorers, all_scores)


def test_a_rejected_medium_needs_no_more_scores():
    rows = media(width_px=[100, 600], chroma=[9.0, 9.0])
    assert lazy(TEXT, CLIP).wants("text", rows).tolist() == [False, True]
    assert lazy(TEXT, CLIP, all_scores=True).wants("text", rows).tolist() == [True, True]


def test_a_rescued_medium_is_not_shown_to_the_model():
    rows = media(width_px=[600, 600, 600], chroma=[9.0, 9.0, 0.5], text_area=[0.0, 0.5, 0.0], scored=[TEXT] * 3)
    assert lazy(TEXT, CLIP).wants("clip", rows).tolist() == [False, True, True]


def test_a_scorer_that_is_off_never_runs_and_never_waits():
    rows = media(width_px=[600], chroma=[0.5], scored=[TEXT], text_area=[0.0])
    assert not lazy(TEXT).wants("clip", rows).any()
    # Without the model the rescue decides, and this one has no colour.
    assert lazy(TEXT).wants("text", rows).tolist() == [False]
    decided = decide(rows, DecideConfig(image_rules=RULES), (TEXT,))
    assert decided["reject_reason"].to_pylist() == ["pleasant"]
    assert "not scored: aesthetic" in decided["reject_detail"][0].as_py()


def test_scores_of_another_model_do_not_count():
    rows = media(width_px=[600], chroma=[0.5], aesthetic=[9.0], text_area=[0.9], scored=[f"{TEXT} clip:old"])
    assert lazy(TEXT, CLIP).wants("clip", rows).tolist() == [True]
    config = DecideConfig(image_rules=RULES)
    assert decide(rows, config, (TEXT, CLIP))["reject_reason"].to_pylist() == [NOT_SCORED]
    assert decide(rows, config, (TEXT, "clip:old"))["reject_reason"].to_pylist() == [None]
    assert decide(rows, config, (TEXT,))["reject_reason"].to_pylist() == [None], "switched off, the old score stands"


def test_a_score_without_a_value_is_not_waited_for():
    rows = media(kind=["video"], flow=[None], duration_s=[6.0])
    rules = DecideConfig(video_rules={"moves": "flow >= 0.04"})
    assert decide(rows, rules, (TEXT, CLIP))["reject_reason"].to_pylist() == ["moves"]


def test_an_open_row_is_decided_when_a_rule_no_longer_asks():
    rows = media(width_px=[600], chroma=[9.0])
    waiting = decide(rows, DecideConfig(image_rules=RULES), (TEXT,))
    assert waiting["reject_reason"].to_pylist() == [NOT_SCORED]
    again = decide(waiting, DecideConfig(image_rules={"large": RULES["large"]}), (TEXT,))
    assert again["reject_reason"].to_pylist() == [None]
    stricter = decide(waiting, DecideConfig(image_rules={**RULES, "vivid": "chroma >= 10"}), (TEXT,))
    assert stricter["reject_reason"].to_pylist() == ["vivid"], "a later rule that is false decides without the text"


@pytest.mark.parametrize(("before", "after"), [(None, TEXT), (CLIP, f"{CLIP} {TEXT}"), ("text:0", TEXT), (TEXT, TEXT)])
def test_scored_names_each_scorer_once(before, after):
    assert add_scored(before, TEXT) == after
