"""What rules over captions read: an answer -> its columns. Plain text work, and a small model for the language."""

import re
from collections.abc import Callable, Collection
from typing import Any

from tokenmill.stages.caption.texts.text import without_opening

_NGRAM = 4
_LEAKED_WORDS = 8  # of the prompt in a row
_REFUSAL = re.compile(
    r"^\W*(i('m| am) (sorry|unable|not able)|(sorry|unfortunately),? (but )?i\b|i (can('|no)t|cannot|do not|don't) "
    r"(see|view|describe|provide|help|assist|identify|process|fulfil|access)|as an ai\b|as a (large )?language model)"
    r"|\bas an ai( language)? model\b|\bi('m| am) (just )?an ai\b|\bno (image|picture|video) (was |is |has been )?"
    r"(provided|attached|uploaded|included)\b|\bplease (provide|upload|share|attach) (the|an?|your) "
    r"(image|picture|video)",
    re.I,
)
_SPECIAL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|\[/?INST\]|</?s>|<(image|video|pad|unk|bos|eos)>|^\W*(assistant|system|user)\s*:", re.I
)

_NUMBER = re.compile(r"\d[\d.,:]*\d|\d")
_QUOTED = re.compile('["\u201c\u201e\u00ab]([^"\u201c-\u201f\u00ab\u00bb]{1,80})["\u201c-\u201d\u00bb]')

_EAST = "\u2e80-\u9fff\uac00-\ud7af"  # written without spaces: each sign counts as a word
_WORD = re.compile(f"[{_EAST}]|[^\\W_{_EAST}]+")


def measured(text: str, finish_reason: str | None, prompt: str, read: str | None = None) -> dict[str, Any]:
    """Columns of an answer. `prompt` is without what the source said, which an answer may repeat; `read`: the captions
    that were put together.
    """
    said = _plain(text)
    return {
        "truncated": finish_reason == "length",
        "leaked": leaks(said, prompt),
        "invented": None if read is None else len(invented(said, read)),
        **of_text(text, ("words", "refused", "boilerplate", "repeated")),
    }


def of_text(text: str, names: Collection[str]) -> dict[str, Any]:
    """Those of the columns `names` that a text alone tells."""
    said = _plain(text)
    return {name: _OF_TEXT[name](said) for name in names if name in _OF_TEXT}


def repeated(text: str) -> float:
    """The share of its 4-grams of words that stood there before."""
    parts = _words(text)
    grams = [tuple(parts[i : i + _NGRAM]) for i in range(len(parts) - _NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def leaks(text: str, prompt: str) -> bool:
    """Whether it holds a special token, a speaker's name in front, or eight words of the prompt in a row."""
    if _SPECIAL.search(text):
        return True
    said, asked = f" {' '.join(_words(text))} ", _words(prompt)
    runs = (asked[i : i + _LEAKED_WORDS] for i in range(len(asked) - _LEAKED_WORDS + 1))
    return any(f" {' '.join(run)} " in said for run in runs)


def invented(text: str, read: str) -> set[str]:
    """Numbers, and names in quotes, that stand in none of the captions put together."""
    facts = {*_NUMBER.findall(text), *(found.strip().lower() for found in _QUOTED.findall(text))}
    known = read.lower()
    return {fact for fact in facts if fact not in known}


def language(text: str) -> str:
    """The likeliest one, ISO 639-1, by py3langid (arXiv 1206.4686's features); of few words a guess."""
    import py3langid  # its model takes half a second

    return py3langid.classify(text)[0]


def _plain(text: str) -> str:
    return text.strip().replace("\u2019", "'")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


_OF_TEXT: dict[str, Callable[[str], Any]] = {
    "words": lambda text: len(_words(text)),
    "refused": lambda text: bool(_REFUSAL.search(text)),
    "boilerplate": lambda text: without_opening(text) != text,
    "repeated": repeated,
    "language": language,
}
