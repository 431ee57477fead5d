"""A trained model, asked by whoever measures it: its losses first, as training computes them, then what it makes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from tokenmill.training.evaluation.losses import Document, Loss, losses
from tokenmill.training.sampling import Choice, Grid, Sampler, Told
from tokenmill.training.trained import load_trained

_Asked = TypeVar("_Asked")


@dataclass(frozen=True)
class Question:
    """A question about a medium, or about nothing seen, and the true answer."""

    text: str
    true: str
    medium: Document | None = None


class Subject:
    """The model of a training's folder; as `load_trained` reads it and with what that raises."""

    def __init__(self, uri: str, device: str, most: int | None = None, is_compiled: bool = False):
        self._lm, self._layout = load_trained(uri, device)
        self._sampler = Sampler(self._lm, self._layout, most, is_compiled)
        self.codebook_size = self._layout.vocabulary.codebook_size

    def losses(self, documents: list[Document]) -> tuple[dict[str, Loss], int]:
        """As training/evaluation/losses.py says."""
        attends = self._lm.config._attn_implementation
        try:
            return losses(self._lm, self._layout, documents)
        finally:
            self._lm.set_attn_implementation(attends)

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], grid: Grid, how: Choice, told: Told) -> np.ndarray:
        """int64 (N, h, w). Raises DoesNotFitError."""
        return np.stack(self._sampler.draw(prompts, grid, how, seeds, told))

    def caption(self, media: list[Document], seed: int, how: Choice, max_tokens: int, told: Told) -> list[str]:
        """What is seen in each medium. Raises DoesNotFitError."""

        def call(part: list[Document], fps: float | None) -> list[str]:
            codes = [each.codes for each in part if each.codes is not None]
            return self._sampler.caption(codes, fps, how, max_tokens, [seed] * len(part), told)

        return _by_fps(media, [each.fps for each in media], call)

    def answer(self, questions: list[Question], seed: int, how: Choice, max_tokens: int, told: Told) -> list[str]:
        """The answer to each question, asked alone. Raises DoesNotFitError."""

        def call(part: list[Question], fps: float | None) -> list[str]:
            codes = [None if each.medium is None else each.medium.codes for each in part]
            return self._sampler.answer(
                [each.text for each in part], codes, fps, how, max_tokens, [seed] * len(part), told
            )

        return _by_fps(questions, [None if each.medium is None else each.medium.fps for each in questions], call)


def _by_fps(
    items: list[_Asked], rates: list[float | None], call: Callable[[list[_Asked], float | None], list[str]]
) -> list[str]:
    """What is said of each; those of one frame rate are asked together."""
    said: dict[int, str] = {}
    for fps in dict.fromkeys(rates):
        places = [place for place, each in enumerate(rates) if each == fps]
        said |= zip(places, call([items[place] for place in places], fps), strict=True)
    return [said[place] for place in range(len(items))]
