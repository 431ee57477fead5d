"""Questions and answers in a .jsonl -> a table of dialogues, each about one medium of the catalog or about none.

Two forms are read, as tuning sets are published in them:

    {"image": "cat.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", ...}]}
    {"image": "cat.jpg", "messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", ...}]}

`image`, `video` or `media` names the medium; without one a dialogue is of words alone. Where the medium stands in the
first question makes no difference: in Emu3's form it stands before it.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tokenmill.storage.errors import TrainingError
from tokenmill.tokenizer.dialogue import Turn

DIALOGUES = pa.schema(
    [
        ("media_id", pa.string()),  # null: about no medium
        ("turns", pa.list_(pa.struct([("question", pa.string()), ("answer", pa.string())]))),
    ]
)
_MEDIA = ("image", "video", "media")
_PLACEHOLDER = re.compile(r"\s*<(image|video)>\s*")
_WHO = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Dialogue:
    """One line of the file."""

    line: int  # from 1
    name: str | None  # of its medium
    turns: list[Turn]


def read_dialogues(data: bytes, uri: str) -> Iterator[Dialogue]:
    """The dialogues of a file. Raises TrainingError with the line that is no dialogue."""
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            try:
                yield _dialogue(json.loads(line), number)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                what = f"no key {error}" if isinstance(error, KeyError) else error
                raise TrainingError(f"{uri}: line {number}: {what}; docs/tune.md shows the form") from error


def _dialogue(document: Any, number: int) -> Dialogue:
    names = [document[key] for key in _MEDIA if document.get(key)]
    if len(names) > 1 or not all(isinstance(name, str) for name in names):
        raise ValueError(f"it names {names}; a dialogue is about one medium")
    spoken = [(_WHO[_who(part)], _said(part)) for part in document.get("conversations") or document["messages"]]
    asked, answered = spoken[::2], spoken[1::2]
    if not spoken or len(asked) != len(answered) or {who for who, _ in asked} != {"user"}:
        raise ValueError("questions and answers do not take turns, a question first and an answer last")
    if {who for who, _ in answered} != {"assistant"} or not all(text for _, text in answered):
        raise ValueError("a question has no answer")
    turns = [Turn(question, answer) for (_, question), (_, answer) in zip(asked, answered, strict=True)]
    return Dialogue(number, names[0] if names else None, turns)


def _who(part: dict[str, Any]) -> str:
    who = part["from"] if "from" in part else part["role"]
    if who not in _WHO:
        raise ValueError(f"{who!r} speaks; a user and an assistant do, and the form has its own system words")
    return str(who)


def _said(part: dict[str, Any]) -> str:
    said = part["value"] if "value" in part else part["content"]
    if isinstance(said, list):  # parts, as processors take them
        said = " ".join(each["text"] for each in said if each["type"] == "text")
    return _PLACEHOLDER.sub("", said).strip()


def table_of(dialogues: list[Dialogue], media_ids: list[str | None]) -> pa.Table:
    """Rows of DIALOGUES, in their order."""
    rows = [
        {"media_id": media_id, "turns": [turn._asdict() for turn in dialogue.turns]}
        for dialogue, media_id in zip(dialogues, media_ids, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=DIALOGUES)


def turns_of(table: pa.Table, number: int) -> list[Turn]:
    """The turns of a row."""
    return [Turn(**turn) for turn in table["turns"][number].as_py()]
