"""Prompt files: shipped ones by name, your own by path; what others wrote goes in as data.

A prompt file is a line `version: N`, then the prompt, in which stand for

    {source_caption} {metadata}   what the source said
    {captions}                    the captions to put together, a line for each captioner
    {times}                       the times of the frames of a clip, in seconds

All but the times is text from strangers, or of models that read such: it goes in as a JSON string whose brackets are
escaped, so that it can neither close its quotes nor spell a model's special tokens (`<|im_end|>`, `[/INST]`). A model
may still do what it reads there.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenmill.storage.errors import UserError
from tokenmill.storage.identity import fingerprint_of

MAX_SOURCE_CHARS = 2000
_SHIPPED = Path(__file__).resolve().parent / "prompt_files"
_SLOT = re.compile(r"\{(\w+)\}")
SLOTS = ("source_caption", "metadata", "captions", "times")
_ESCAPED = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>[]{}&"}


class PromptError(UserError, ValueError):
    """A prompt cannot be used; the message names the file and what to do."""


class Prompt(NamedTuple):
    """One prompt file. `name` is that of the file."""

    name: str
    version: str
    text: str

    @property
    def slots(self) -> set[str]:
        """Which of SLOTS it uses."""
        return set(_SLOT.findall(self.text))

    @property
    def identity(self) -> str:
        """Of version and text."""
        return fingerprint_of("prompt", self.version, self.text)

    def filled(self, medium: Mapping[str, Any], times: Sequence[float] = ()) -> str:
        """The prompt for one medium, a row of TO_CAPTION; `times` in seconds from its beginning."""
        read: dict[str, str] = json.loads(medium["read"] or "{}")
        said = {
            "captions": lambda: "\n".join(f"{name}: {quoted(text)}" for name, text in read.items()),
            "times": lambda: ", ".join(f"{time_s:.1f}" for time_s in times),
        }
        return _SLOT.sub(lambda slot: said[slot[1]]() if slot[1] in said else quoted(medium[slot[1]]), self.text)


def shipped() -> list[str]:
    """Names of the prompts that come along."""
    return sorted(path.stem for path in _SHIPPED.glob("*.md"))


def load_prompt(name: str) -> Prompt:
    """A shipped prompt by name, or the file at a path. Raises PromptError."""
    path = _SHIPPED / f"{name}.md" if name in shipped() else Path(name).expanduser()
    try:
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(
            f"prompt {name}: no such file ({error}); pass the path of one, or a shipped one: {', '.join(shipped())}"
        ) from error
    version, text = re.fullmatch(r"version: *(\S+)\s*", first), rest.strip()
    if version is None or not text:
        raise PromptError(f"{path}: the first line must be `version: N`, and the prompt stand below it")
    prompt = Prompt(path.stem, version[1], text)
    if unknown := sorted(prompt.slots - set(SLOTS)):
        raise PromptError(f"{path}: {{{unknown[0]}}} is nothing that a prompt can hold; known: {', '.join(SLOTS)}")
    return prompt


def quoted(text: str | None) -> str:
    """Text from outside as a JSON string without brackets, at most MAX_SOURCE_CHARS of it; `null` where none is."""
    return json.dumps(None if text is None else text[:MAX_SOURCE_CHARS], ensure_ascii=False).translate(_ESCAPED)
