"""Losses are those of transformers' own class, each of the tokens that it is named for; words beside true ones."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tokenmill.tokenizer.sequence import Kind, SequenceLayout
from tokenmill.tokenizer.text import train_text_tokenizer
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.captioner import scores
from tokenmill.training.config import ModelConfig
from tokenmill.training.evaluation import losses, words
from tokenmill.training.evaluation.losses import Document
from tokenmill.training.model.model import build_model

CAPTIONS = ["a red circle left of a blue square", "a blue square", "a red star above a red circle"]
SIZES = ModelConfig(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48, dropout=0.1)


@pytest.fixture(scope="module")
def parts():
    tokenizer = train_text_tokenizer(CAPTIONS, 300)
    layout = SequenceLayout(tokenizer, Vocabulary.of(tokenizer, 50))
    return build_model(SIZES, layout.vocabulary, 64, seed=0), layout


def plain(lm, sequence, kind):
    """Mean loss of the tokens of a kind, by the class of transformers with its plain attention."""
    lm.set_attn_implementation("eager")
    ids = torch.tensor(sequence.ids[None]).long()
    with torch.no_grad():
        nll = functional.cross_entropy(lm.eval()(ids).logits[0, :-1], ids[0, 1:], reduction="none")
    return float(nll[torch.tensor(sequence.kinds[1:] == kind)].mean())


def test_losses_are_those_of_each_document_alone(parts):
    lm, layout = parts
    rng = np.random.default_rng(0)
    picture, clip = rng.integers(0, 50, (3, 4)), rng.integers(0, 50, (2, 3, 3))
    documents = [
        Document(picture, None, CAPTIONS[0]),
        Document(picture + 0, None, None),
        Document(clip, 12.0, " "),
        Document(None, None, CAPTIONS[1]),
        Document(rng.integers(0, 50, (9, 9)), None, None),  # longer than the context
    ]
    found, num_long = losses.losses(lm, layout, documents)
    ids = layout.caption_ids(CAPTIONS[0])
    wanted = {
        "image": (layout.build(picture, ids), Kind.IMAGE),
        "caption": (layout.build(picture, ids, is_caption_last=True), Kind.TEXT),
        "image alone": (layout.build(picture, ids[:0]), Kind.IMAGE),
        "video alone": (layout.build(clip, ids[:0], 12.0), Kind.VIDEO),
        "text": (layout.build_text(layout.caption_ids(CAPTIONS[1]), True, True), Kind.DOCUMENT),
    }
    assert num_long == 1 and set(found) == set(wanted)
    for name, (sequence, kind) in wanted.items():
        assert found[name].mean == pytest.approx(plain(lm, sequence, kind), abs=1e-4), name
        assert (found[name].num_documents, found[name].num_tokens) == (1, (sequence.kinds == kind).sum())


def test_a_long_text_counts_as_far_as_the_context_goes(parts):
    lm, layout = parts
    found, num_long = losses.losses(lm, layout, [Document(None, None, "a red circle " * 60)])
    assert num_long == 0 and found["text"].num_tokens == 62  # 64 with BOS, and no EOS


def test_captions_beside_the_true_ones():
    assert words.bleu(CAPTIONS, CAPTIONS) == pytest.approx(1.0)
    assert words.bleu(["A red circle, left of a blue square!"], CAPTIONS[:1]) == pytest.approx(1.0)
    said = ["a red circle right of a blue square", "a blue star", "a red star above a red circle"]
    assert 0 < words.bleu(said, CAPTIONS) < 1
    long = [each for each in CAPTIONS if len(each.split()) >= 4]
    assert words.cider(long, long) == pytest.approx(10.0)
    ours = float(np.mean(scores.cider([said[0], said[2]], long)))
    assert words.cider([said[0], said[2]], long) == pytest.approx(ours, rel=0.02)
    assert words.cider(["", ""], long) == 0


@pytest.mark.parametrize(
    ("said", "true", "is_right"),
    [
        ("The red circle.", "red circle", True),
        ("2", "two", False),
        ("a", "", True),
        ("red  Circle", "red square", False),
    ],
)
def test_answers_are_compared_as_vqa_does(said, true, is_right):
    assert words.is_right(said, true) == is_right
