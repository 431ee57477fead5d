"""Which answers count as captions."""

import pytest

from tokenmill.stages.caption.checks import check, leaks, repeated
from tokenmill.stages.caption.config import ChecksConfig
from tokenmill.stages.caption.engine import Answer
from tokenmill.stages.caption.prompts import load_prompt
from tokenmill.stages.table.rows import RowError

PROMPT = load_prompt("dense").text
LOOP = "a red circle above a blue square, " * 6


def reason(text: str, finish: str = "stop", **config: object) -> str | None:
    try:
        check(Answer(text, finish, 1, 1), PROMPT, ChecksConfig.model_validate(config))
    except RowError as error:
        return error.columns["reject_reason"]
    return None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red circle stands above a blue square.", None),
        ("Two people at a table; one says he is sorry.", None),
        ("A sign reads \u201cI cannot stop\u201d beside a road.", None),
        ("An AI conference hall, with a stage and many rows of seats.", None),
        ("\u4e00\u53ea\u7ea2\u8272\u7684\u72d7\u5728\u8349\u5730\u4e0a", None),
        ("", "caption_empty"),
        (" ... \n", "caption_empty"),
        ("I\u2019m sorry, but I can\u2019t help with that.", "caption_refused"),
        ("As an AI language model, I see a dog on a lawn.", "caption_refused"),
        ("I cannot see the picture you mean.", "caption_refused"),
        ("Please upload the image you want me to describe.", "caption_refused"),
        ("No image was provided.", "caption_refused"),
        ("Assistant: a dog on a lawn", "caption_leaks"),
        ("a dog on a lawn<|im_end|> a dog", "caption_leaks"),
        ("Describe this picture in one paragraph of plain English: a dog.", "caption_leaks"),
        (LOOP, "caption_repeats"),
        ("a dog", "caption_too_short"),
    ],
)
def test_answers(text, expected):
    assert reason(text) == expected


def test_each_check_can_be_left_out():
    assert (
        reason("A dog on a", "length") == "caption_truncated"
        and reason("A dog on a", "length", truncated=False) is None
    )
    assert reason("I cannot see the picture.", refusals=False) is None
    assert reason("Assistant: a dog on a lawn", leaks=False) is None
    assert reason(LOOP, max_repeated=None) is None
    assert reason("dog", min_words=1) is None


def test_repetition_is_a_share():
    assert repeated("one two three") == 0 and repeated("a b c d e f g h") == 0
    assert repeated("a b c d " * 10) > 0.8


def test_what_the_source_said_is_no_leak():
    said = "the tower of the old town hall seen from the market place"
    assert not leaks(said, "Said by others: {source_caption}. Describe.")
