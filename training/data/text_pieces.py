"""Text documents -> pieces of at most the context, and a piece's text ids back from its document.

`BOS text EOS` is cut every `context_tokens`: nothing is lost, nothing stands twice. BOS stands on the first piece and
EOS on the last alone, because they say where a document begins and ends: a BOS on every piece would teach that texts
(and captions, which follow a BOS too) may begin in the middle of a sentence, an EOS that they may stop there.

A document is tokenized in blocks of 32,768 characters, cut before a blank where there is one. So a record says where
its block begins, and a piece of a book costs the reading of a block or two: tokenizing the whole book for each of its
pieces would cost the square of its length.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tokenmill.tokenizer.sequence import SequenceLayout
from tokenmill.tokenizer.text import encode_captions

_BLOCK_CHARACTERS = 1 << 15
_BATCH_BLOCKS = 256  # tokenized at once, into Python numbers: at most 0.3 GB


@dataclass(frozen=True)
class Pieces:
    """Columns of equal length, one entry per piece, in the order of texts and of pieces in each."""

    text: np.ndarray  # int64, position in the list of texts
    number: np.ndarray  # int32, 0, 1, ... in its text
    start: np.ndarray  # int32, the character at which the block of its first token begins
    skip: np.ndarray  # int32, tokens of that block which belong to the piece before
    text_tokens: np.ndarray  # int32, without BOS and EOS
    structure_tokens: np.ndarray  # int32, 1 for BOS and 1 for EOS where they stand


def cut_texts(texts: list[str], layout: SequenceLayout, context_tokens: int) -> Pieces:
    """The pieces of some texts."""
    blocks = [(text, start, part) for text, whole in enumerate(texts) for start, part in _blocks(whole)]
    lengths: list[int] = []
    for first in range(0, len(blocks), _BATCH_BLOCKS):
        parts = [part for _, _, part in blocks[first : first + _BATCH_BLOCKS]]
        lengths += [len(ids) for ids in encode_captions(layout.tokenizer, parts)]
    text_of, start_of = (np.array(column, np.int64) for column in zip(*[block[:2] for block in blocks], strict=True))
    ends = np.cumsum(lengths)  # of blocks, in tokens of all texts one after the other
    last_block = np.flatnonzero(np.diff(text_of, append=len(texts)))
    text_ends = ends[last_block]
    text_begins = text_ends - np.diff(text_ends, prepend=0)

    counts = -(-(text_ends - text_begins + 2) // context_tokens)
    text = np.repeat(np.arange(len(texts)), counts)
    number = np.arange(len(text)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_first, is_last = number == 0, number == counts[text] - 1
    begin = text_begins[text] + np.maximum(number * context_tokens - 1, 0)  # one less: BOS stands before the text
    end = np.minimum(text_begins[text] + (number + 1) * context_tokens - 1, text_ends[text])
    begin = np.minimum(begin, end)  # an EOS alone
    block = np.minimum(np.searchsorted(ends, begin, side="right"), last_block[text])
    return Pieces(
        text=text,
        number=number.astype(np.int32),
        start=start_of[block].astype(np.int32),
        skip=(begin - (ends - lengths)[block]).astype(np.int32),
        text_tokens=(end - begin).astype(np.int32),
        structure_tokens=(is_first.astype(np.int32) + is_last),
    )


def piece_ids(text: str, start: int, skip: int, text_tokens: int, layout: SequenceLayout) -> np.ndarray:
    """int32 text ids of a piece, fewer than `text_tokens` where the text is another one."""
    parts: list[np.ndarray] = []
    num_tokens = 0
    for _, part in _blocks(text, start):
        parts += encode_captions(layout.tokenizer, [part])
        num_tokens += len(parts[-1])
        if num_tokens >= skip + text_tokens:
            break
    return np.concatenate([np.empty(0, np.int32), *parts])[skip : skip + text_tokens]


def _blocks(text: str, start: int = 0) -> Iterator[tuple[int, str]]:
    """(first character, block) from `start`, where a block begins: how it goes on depends on nothing before."""
    while start < len(text):
        end = start + _BLOCK_CHARACTERS
        if end < len(text):
            blank = text.rfind(" ", start + 1, end)
            end = blank if blank > 0 else end
        yield start, text[start:end]
        start = end
