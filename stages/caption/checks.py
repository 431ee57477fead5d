"""Whether an answer counts as a caption: an answer -> nothing, or the reason why not. Plain text work, no model."""

import re

from tokenmill.stages.caption.config import ChecksConfig
from tokenmill.stages.caption.engine import Answer
from tokenmill.stages.table.rows import RowError

_NGRAM = 4
_LEAKED_WORDS = 8  # of the prompt in a row
_SHOWN_CHARS = 120
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

_EAST = "\u2e80-\u9fff\uac00-\ud7af"  # written without spaces: each sign counts as a word
_WORD = re.compile(f"[{_EAST}]|[^\\W_{_EAST}]+")


def check(answer: Answer, prompt: str, config: ChecksConfig) -> None:
    """Raises RowError for an answer that is no caption; its detail is how the answer begins. `prompt` is without what
    the source said, which an answer may repeat.
    """
    text = answer.text.strip().replace("\u2019", "'")
    shown = " ".join(text.split())[:_SHOWN_CHARS]
    if not _WORD.search(text):
        raise RowError("caption_empty", shown)
    if config.truncated and answer.finish_reason == "length":
        raise RowError("caption_truncated", shown)
    if config.refusals and _REFUSAL.search(text):
        raise RowError("caption_refused", shown)
    if config.leaks and leaks(text, prompt):
        raise RowError("caption_leaks", shown)
    if config.max_repeated is not None and repeated(text) > config.max_repeated:
        raise RowError("caption_repeats", shown)
    if len(_words(text)) < config.min_words:
        raise RowError("caption_too_short", shown)


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


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
