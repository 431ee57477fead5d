"""Documents side by side, as a model reads them: one forward pass."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tokenmill.tokenizer.sequence import Kind, Sequence
from tokenmill.training.config import LossWeights

PADDING = -1  # the document number of padding


@dataclass(frozen=True)
class Pack:
    """Documents one after the other, then padding; every array (pack_tokens,)."""

    ids: np.ndarray  # int32
    kinds: np.ndarray  # uint8, Kind
    positions: np.ndarray  # int32, from 0 in each document
    documents: np.ndarray  # int32, 0, 1, ... in the pack; PADDING behind the last
    reference: np.ndarray | None = None  # float32, one for each document, where they are pairs of drawings

    @classmethod
    def empty(cls) -> "Pack":
        """One token of padding: what a worker computes when the others have a pack more."""
        return cls(np.zeros(1, np.int32), np.zeros(1, np.uint8), np.zeros(1, np.int32), np.full(1, PADDING, np.int32))

    @classmethod
    def of(cls, sequences: Iterable[Sequence], num_tokens: int, pad: int) -> "Pack":
        """Sequences one after the other, which must fit, then `pad` up to `num_tokens`."""
        ids = np.full(num_tokens, pad, np.int32)
        kinds = np.zeros(num_tokens, np.uint8)
        positions = np.zeros(num_tokens, np.int32)
        documents = np.full(num_tokens, PADDING, np.int32)
        end = 0
        for count, sequence in enumerate(sequences):
            place = slice(end, end + len(sequence.ids))
            ids[place], kinds[place] = sequence.ids, sequence.kinds
            positions[place] = np.arange(len(sequence.ids))
            documents[place] = count
            end = place.stop
        return cls(ids, kinds, positions, documents)

    def loss_weight(self, weights: LossWeights) -> float:
        """Sum of the loss weights, as training/model/loss.py gives them: none for the first token of a document and for
        padding.
        """
        predicted = (self.documents != PADDING) & (self.positions > 0) & (self.kinds != Kind.PROMPT)
        is_text = (self.kinds == Kind.TEXT) | (self.kinds == Kind.DOCUMENT)
        num_text = int((predicted & is_text).sum())
        return weights.text * num_text + weights.vision * (int(predicted.sum()) - num_text)

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.documents != PADDING).sum())

    @property
    def num_pairs(self) -> int:
        """Pairs of tokens of which one sees the other: n (n + 1) / 2 of a document of n, which is causal."""
        lengths = np.bincount(self.documents[self.documents != PADDING])
        return int((lengths * (lengths + 1) // 2).sum())
