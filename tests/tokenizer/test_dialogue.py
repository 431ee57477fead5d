"""Dialogues: Emu3's chat form, answers alone are text, and the length is known before the sequence is built."""

import numpy as np
import pytest

from tokenmill.tokenizer.dialogue import Turn, build_dialogue, num_dialogue_tokens
from tokenmill.tokenizer.sequence import Kind, SequenceLayout
from tokenmill.tokenizer.text import train_text_tokenizer
from tokenmill.tokenizer.vocabulary import Vocabulary

CODES = np.arange(12).reshape(3, 4)
TURNS = [Turn("What is it?", "a red circle"), Turn("Which colour", "red")]


@pytest.fixture(scope="module")
def layout():
    tokenizer = train_text_tokenizer(["a red circle"], 300)
    return SequenceLayout(tokenizer, Vocabulary.of(tokenizer, 64))


def test_the_words_are_those_of_emu3_chat(layout):
    sequence = build_dialogue(layout, TURNS)
    v = layout.vocabulary
    words = str(layout.tokenizer.decode([i for i in sequence.ids.tolist() if i not in (v.bos, v.eos)]))
    said = "You are a helpful assistant. USER: What is it?. ASSISTANT:a red circle USER: Which colour. ASSISTANT:red"
    assert words == said
    assert sequence.ids[0] == v.bos and sequence.ids[-1] == v.eos and (sequence.ids == v.eos).sum() == 2


def test_answers_alone_are_text(layout):
    sequence = build_dialogue(layout, TURNS, layout.build(CODES, layout.caption_ids(None)))
    answers = sequence.ids[sequence.kinds == Kind.TEXT].tolist()
    words = [layout.caption_ids(turn.answer).tolist() for turn in TURNS]
    assert answers == [*words[0], layout.vocabulary.eos, *words[1], layout.vocabulary.eos]
    assert (sequence.kinds == Kind.IMAGE).sum() == 12
    assert set(sequence.kinds[sequence.ids == layout.vocabulary.sov]) == {Kind.STRUCTURE}


@pytest.mark.parametrize("turns", [TURNS, TURNS[:1], [Turn("What is it?")], [*TURNS, Turn("Why?")]])
def test_its_length_is_known_before(layout, turns):
    assert len(build_dialogue(layout, turns).ids) == num_dialogue_tokens(layout, turns)
    medium = layout.build(CODES, layout.caption_ids(None))
    whole = num_dialogue_tokens(layout, turns) + layout.num_medium_tokens(3, 4) - 2
    assert len(build_dialogue(layout, turns, medium).ids) == whole


def test_a_question_without_an_answer_ends_where_it_begins(layout):
    asked, answered = (build_dialogue(layout, [Turn("What is it?", text)]) for text in ("", "a red circle"))
    np.testing.assert_array_equal(asked.ids, answered.ids[: len(asked.ids)])
    assert asked.kinds[-1] == Kind.PROMPT
    with pytest.raises(ValueError, match="without a question"):
        build_dialogue(layout, [])
