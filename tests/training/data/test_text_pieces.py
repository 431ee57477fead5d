"""Pieces of text documents: nothing lost, nothing twice, and a piece of a book does not cost the book."""

import numpy as np
import pytest

from tokenmill.tokenizer.sequence import SequenceLayout
from tokenmill.tokenizer.text import encode_captions, train_text_tokenizer
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.data import text_pieces as module
from tokenmill.training.data.text_pieces import cut_texts, piece_ids

CONTEXT = 20


@pytest.fixture(scope="module")
def layout():
    tokenizer = train_text_tokenizer(["the mill turns grain into flour"] * 3, 300)
    return SequenceLayout(tokenizer, Vocabulary.of(tokenizer, 64))


def sequences(texts, layout, context=CONTEXT):
    """The sequences of each text's pieces."""
    pieces = cut_texts(texts, layout, context)
    found = [[] for _ in texts]
    for i, text in enumerate(pieces.text):
        num_text = int(pieces.text_tokens[i])
        ids = piece_ids(texts[text], int(pieces.start[i]), int(pieces.skip[i]), num_text, layout)
        assert len(ids) == num_text
        assert pieces.number[i] == len(found[text])
        is_first = pieces.number[i] == 0
        found[text].append(layout.build_text(ids, is_first, pieces.structure_tokens[i] > is_first).ids)
    return found


@pytest.mark.parametrize("block_characters", [1 << 15, 40, 7])
def test_pieces_side_by_side_are_the_document(layout, monkeypatch, block_characters):
    monkeypatch.setattr(module, "_BLOCK_CHARACTERS", block_characters)
    monkeypatch.setattr(module, "_BATCH_BLOCKS", 3)
    v = layout.vocabulary
    rng = np.random.default_rng(0)
    signs = np.array(list("theml  é数\n0<|"))
    texts = ["".join(signs[rng.integers(0, len(signs), length)]) for length in rng.integers(1, 200, 60)]
    for text, found in zip(texts, sequences(texts, layout), strict=True):
        whole = np.concatenate(found)
        assert (whole[0], whole[-1]) == (v.bos, v.eos)
        assert layout.tokenizer.decode(whole[1:-1].tolist()) == text
        assert [len(ids) for ids in found[:-1]] == [CONTEXT] * (len(found) - 1)
        assert 1 <= len(found[-1]) <= CONTEXT
        if block_characters > len(text):
            np.testing.assert_array_equal(whole[1:-1], encode_captions(layout.tokenizer, [text])[0])


@pytest.mark.parametrize(("num_tokens", "lengths"), [(18, [20]), (19, [20, 1]), (38, [20, 20]), (39, [20, 20, 1])])
def test_lengths_at_the_edge_of_the_context(layout, num_tokens, lengths):
    """A digit is a token; BOS and EOS are two more, and an EOS may stand alone."""
    (found,) = sequences(["7" * num_tokens], layout)
    assert [len(ids) for ids in found] == lengths
    assert found[-1][-1] == layout.vocabulary.eos


def test_blocks_end_before_a_blank(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_CHARACTERS", 10)
    assert list(module._blocks("the mill turns")) == [(0, "the mill"), (8, " turns")]
    assert list(module._blocks("x" * 25)) == [(0, "x" * 10), (10, "x" * 10), (20, "x" * 5)]
    assert list(module._blocks("the mill turns", 8)) == [(8, " turns")]


def test_a_piece_of_a_book_costs_its_blocks_alone(layout, monkeypatch):
    book = "the mill turns grain into flour " * 20_000
    pieces = cut_texts([book], layout, 500)
    read = []
    real = module.encode_captions

    def count(tokenizer, texts):
        read.append(sum(map(len, texts)))
        return real(tokenizer, texts)

    monkeypatch.setattr(module, "encode_captions", count)
    for i in range(0, len(pieces.text), 50):
        place = (int(column[i]) for column in (pieces.start, pieces.skip, pieces.text_tokens))
        piece_ids(book, *place, layout)
    assert len(pieces.text) > 150
    assert max(read) <= 1 << 15
    assert len(read) <= 2 * len(range(0, len(pieces.text), 50))


def test_a_text_that_became_shorter_gives_fewer_ids(layout):
    assert len(piece_ids("the mill", 0, 0, 500, layout)) < 500
    assert len(piece_ids("the mill", 40_000, 3, 5, layout)) == 0
