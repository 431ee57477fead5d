"""What rules over captions read of an answer, and which answers the models' own rules leave out."""

import pyarrow as pa
import pytest

from tokenmill.stages.caption.captioners.config import MODEL_RULES
from tokenmill.stages.caption.captioners.prompts import load_prompt
from tokenmill.stages.caption.texts.measure import invented, leaks, measured, of_text, repeated
from tokenmill.stages.caption.texts.verdicts import columns_judged, judge_captions
from tokenmill.stages.table.columns import CAPTIONS

PROMPT = load_prompt("dense").text
LOOP = "a red circle above a blue square, " * 6


def rows(*texts: str | None, finish: str = "stop", **columns: object) -> pa.Table:
    found = [{} if text is None else measured(text, finish, PROMPT) for text in texts]
    made = [{"media_id": "m", "caption": text, **each, **columns} for text, each in zip(texts, found, strict=True)]
    return pa.Table.from_pylist(made, schema=CAPTIONS)


def reasons(table: pa.Table, **rules: str) -> list[str | None]:
    return judge_captions(table, rules or MODEL_RULES)["reject_reason"].to_pylist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red circle stands above a blue square.", None),
        ("Two people at a table; one says he is sorry.", None),
        ("A sign reads \u201cI cannot stop\u201d beside a road.", None),
        ("An AI conference hall, with a stage and many rows of seats.", None),
        ("\u4e00\u53ea\u7ea2\u8272\u7684\u72d7\u5728\u8349\u5730\u4e0a", None),
        ("", "not_empty"),
        (" ... \n", "not_empty"),
        ("I\u2019m sorry, but I can\u2019t help with that.", "not_refused"),
        ("As an AI language model, I see a dog on a lawn.", "not_refused"),
        ("I cannot see the picture you mean.", "not_refused"),
        ("Please upload the image you want me to describe.", "not_refused"),
        ("No image was provided.", "not_refused"),
        ("Assistant: a dog on a lawn", "not_leaked"),
        ("a dog on a lawn<|im_end|> a dog", "not_leaked"),
        ("Describe this picture in one paragraph of plain English: a dog.", "not_leaked"),
        (LOOP, "not_repeated"),
        ("a dog", "not_too_short"),
    ],
)
def test_answers_of_models(text, expected):
    assert reasons(rows(text)) == [expected]


def test_rules_are_taken_back_and_the_text_stays():
    cut = rows("A dog on a", finish="length")
    rejected = judge_captions(cut, MODEL_RULES)
    assert rejected["reject_detail"].to_pylist() == ["rule: not truncated"]
    assert rejected["caption"].to_pylist() == ["A dog on a"]
    assert judge_captions(rejected, {}).equals(cut) and reasons(rejected, long="words >= 4") == [None]
    refused = rows(None, reject_reason="bad_picture", reject_detail="400: cannot load")
    assert judge_captions(refused, MODEL_RULES).equals(refused), "what a server refused is for no rule"
    assert reasons(rows(None)) == [None], "no caption is nothing to judge"


def test_what_a_rule_asks_of_a_source_s_caption_is_measured_then():
    source = pa.Table.from_pylist(
        [{"caption": "un chien noir court dans la neige"}, {"caption": "a black dog runs through the snow"}],
        schema=pa.schema([CAPTIONS.field(name).with_nullable(True) for name in CAPTIONS.names]),
    )
    judged = judge_captions(source, {"english": "language == 'en'", "long": "words >= 3"})
    assert judged["reject_reason"].to_pylist() == ["english", None]
    assert (judged["language"].to_pylist(), judged["words"].to_pylist()) == (["fr", "en"], [7, 7])
    assert columns_judged({"english": "language == 'en'"}) == ["caption", "reject_reason", "reject_detail", "language"]


def test_repetition_is_a_share():
    assert repeated("one two three") == 0 and repeated("a b c d e f g h") == 0
    assert repeated("a b c d " * 10) > 0.8


def test_what_the_source_said_is_no_leak():
    said = "the tower of the old town hall seen from the market place"
    assert not leaks(said, "Said by others: {source_caption}. Describe.")


def test_boilerplate_in_front():
    told = {"The image shows a dog": True, "In this photo, there is a dog": True, "A photo shows a dog": False}
    assert {text: of_text(text, ["boilerplate"])["boilerplate"] for text in told} == told


def test_numbers_and_quoted_names_that_nobody_said():
    read = '{"source": "Ada Lovelace, 1843, by M. Carpenter", "long": "a woman in a dress, text \\"Note G\\""}'
    assert invented('"Ada Lovelace" in 1843 beside "Note G"', read) == set()
    assert invented('"Mary Shelley" in 1,842', read) == {"mary shelley", "1,842"}
    assert (
        measured("one 7", "stop", PROMPT, read)["invented"] == 1 and measured("7", "stop", PROMPT)["invented"] is None
    )
