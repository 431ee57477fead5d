"""Questions and answers, about a medium or about nothing seen -> one token sequence, as Emu3-Chat is asked (Emu3 code):

    BOS You are a helpful assistant. USER: SOV ... EOV question. ASSISTANT: answer EOS  USER: question. ASSISTANT: ...

The medium stands before the first question. Answers, each with its EOS, are text; questions are of a kind of their own
that no loss counts. An answer is written as it is, without a blank before it.
"""

from collections.abc import Sequence as Items
from typing import Any, NamedTuple

import numpy as np

from tokenmill.tokenizer.sequence import Kind, Sequence, SequenceLayout
from tokenmill.tokenizer.text import encode_captions

_SYSTEM = "You are a helpful assistant. USER: "
_ASK = ". ASSISTANT:"
_AGAIN = " USER: "


class Turn(NamedTuple):
    """A question and its answer; the last answer may be still to come: empty."""

    question: str
    answer: str = ""


def build_dialogue(layout: SequenceLayout, turns: Items[Turn], medium: Sequence | None = None) -> Sequence:
    """The sequence of a dialogue about `medium`, the sequence of a medium without caption (`SequenceLayout.build`).

    Where the last answer is empty it ends where that is to begin. Raises ValueError without a turn.
    """
    if not turns:
        raise ValueError("a dialogue without a question; give at least one")
    v = layout.vocabulary
    before, *rest = encode_captions(layout.tokenizer, _texts(turns))
    parts = [_part([v.bos], Kind.STRUCTURE), _part(before, Kind.PROMPT)]
    if medium is not None:
        parts.append(Sequence(medium.ids[1:-1], medium.kinds[1:-1]))
    for question, answer in zip(rest[::2], rest[1::2], strict=True):
        parts.append(_part(question, Kind.PROMPT))
        if len(answer):
            parts.append(_part([*answer, v.eos], Kind.TEXT))
    return Sequence(np.concatenate([part.ids for part in parts]), np.concatenate([part.kinds for part in parts]))


def _part(ids: Any, kind: Kind) -> Sequence:
    return Sequence(np.asarray(ids, np.int32), np.full(len(ids), kind, np.uint8))


def num_dialogue_tokens(layout: SequenceLayout, turns: Items[Turn]) -> int:
    """Length of the sequence of a dialogue about nothing; one about a medium has `num_medium_tokens` - 2 more."""
    ids = encode_captions(layout.tokenizer, _texts(turns))
    return 1 + sum(len(each) for each in ids) + sum(len(answer) > 0 for answer in ids[2::2])


def _texts(turns: Items[Turn]) -> list[str]:
    """What stands before the medium; then, for each turn, what is asked and what is answered."""
    asked = [turns[0].question + _ASK, *(_AGAIN + turn.question + _ASK for turn in turns[1:])]
    return [_SYSTEM, *(text for ask, turn in zip(asked, turns, strict=True) for text in (ask, turn.answer))]
