"""Captions beside the true ones: how many are the same, and CIDEr-D, which counts rare words more than common ones.

CIDEr-D is that of Vedantam, Zitnick, Parikh, "CIDEr: Consensus-based Image Description Evaluation" (CVPR 2015,
arXiv 1411.5726), section 4 with the changes of 5.5: n-grams of 1 to 4 words, weighed by how few of the true captions
hold them, clipped counts, a Gaussian of the difference in length (sigma 6), times ten. Here each medium has one true
caption, and words are not stemmed, as in the code that its authors published. So 10 is a caption that is its truth.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

_MOST_WORDS = 4  # of an n-gram
_SIGMA = 6.0
_SCALE = 10.0
_WORD = re.compile(r"[^\W_]+")

Gram = tuple[str, ...]


def same(written: Sequence[str | None], true: Sequence[str]) -> list[bool]:
    """Which are the true caption, but for spaces."""
    return [text is not None and text.split() == wanted.split() for text, wanted in zip(written, true, strict=True)]


def cider(written: Sequence[str | None], true: Sequence[str]) -> list[float]:
    """CIDEr-D of each, 0..10; null and what shares no word with its truth has 0. How rare a word is, the true captions
    say: with one of them, or with equal ones alone, no word is rare and all is 0.
    """
    truths = [_grams(text) for text in true]
    found_in = Counter(gram for grams in truths for gram in grams)
    log_num = math.log(max(1, len(truths)))
    rarity = {gram: log_num - math.log(count) for gram, count in found_in.items()}
    return [
        0.0 if text is None else _SCALE * _likeness(_grams(text), truth, rarity, log_num)
        for text, truth in zip(written, truths, strict=True)
    ]


def _likeness(written: Counter[Gram], true: Counter[Gram], rarity: dict[Gram, float], log_num: float) -> float:
    """Mean over the lengths of n-grams: cosine of clipped counts, times the penalty of another length."""
    total, used = 0.0, 0
    for size in range(1, _MOST_WORDS + 1):
        mine = {gram: count * rarity.get(gram, log_num) for gram, count in written.items() if len(gram) == size}
        theirs = {gram: count * rarity[gram] for gram, count in true.items() if len(gram) == size}
        if not mine and not theirs:
            continue  # both are shorter than that
        used += 1
        norms = math.hypot(*mine.values()) * math.hypot(*theirs.values())
        if norms:
            product = sum(min(mine[gram], theirs[gram]) * theirs[gram] for gram in mine.keys() & theirs.keys())
            total += product / norms
    length, wanted = (sum(count for gram, count in grams.items() if len(gram) == 1) for grams in (written, true))
    return total / max(1, used) * math.exp(-((length - wanted) ** 2) / (2 * _SIGMA**2))


def _grams(text: str) -> Counter[Gram]:
    words = _WORD.findall(text.lower())
    return Counter(
        tuple(words[at : at + size]) for size in range(1, _MOST_WORDS + 1) for at in range(len(words) - size + 1)
    )
