"""Captions and answers beside the true ones -> BLEU, CIDEr, exact match.

BLEU-4 of the whole corpus is torchmetrics', CIDEr that of COCO's own code (pycocoevalcap), each of lower-case words
without punctuation in place of the Java tokenizer that COCO runs before. With one reference a medium both are lower
than the published figures, which have five.
"""

import re
import string
from collections.abc import Sequence
from importlib.util import find_spec

from torchmetrics.functional.text import bleu_score

NO_CIDER = "needs pycocoevalcap: pip install 'tokenmill[eval]'"
_WORD = re.compile(r"[^\W_]+")
_ARTICLES = {"a", "an", "the"}
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def has_cider() -> bool:
    """Whether the library is installed."""
    return find_spec("pycocoevalcap") is not None


def bleu(said: Sequence[str], true: Sequence[str]) -> float:
    """BLEU-4 of all together, 0..1: Papineni et al. 2002, without smoothing."""
    return float(bleu_score([_words(text) for text in said], [[_words(text)] for text in true]))


def cider(said: Sequence[str], true: Sequence[str]) -> float:
    """CIDEr-D, 0..10, the mean (Vedantam et al. 2015; papers write it times 100). How rare a word is, the true
    captions say: where all are equal it is 0.
    """
    from pycocoevalcap.cider.cider import Cider

    references, candidates = ({n: [_words(text)] for n, text in enumerate(texts)} for texts in (true, said))
    return float(Cider().compute_score(references, candidates)[0])


def is_right(said: str, true: str) -> bool:
    """Equal but for case, punctuation, articles and spaces."""
    return normal(said) == normal(true)


def normal(answer: str) -> str:
    """'The  red circle.' -> 'red circle', as VQA compares answers; number words stay as they are."""
    words = answer.lower().translate(_NO_PUNCTUATION).split()
    return " ".join(word for word in words if word not in _ARTICLES)


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.lower()))
