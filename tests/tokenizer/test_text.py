"""The text tokenizer: deterministic, digits apart, and no caption can forge a structural token."""

import random

import numpy as np
import pytest
from tokenizers import AddedToken

from tokenmill.tokenizer.text import SPECIAL_STRINGS, encode_captions, load_text_tokenizer, train_text_tokenizer

CAPTIONS = [f"a {colour} {shape} left of {n} grey squares" for n in range(30) for colour in ("red", "blue")
            for shape in ("circle", "star")]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_text_tokenizer(CAPTIONS, 320)


def test_training_is_deterministic_whatever_the_order(tokenizer):
    shuffled = random.Random(3).sample(CAPTIONS, len(CAPTIONS))
    again = train_text_tokenizer(iter(shuffled), 320)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert [i.tolist() for i in encode_captions(again, CAPTIONS)] == [
        i.tolist() for i in encode_captions(tokenizer, CAPTIONS)
    ]


def test_any_text_survives_a_round_trip(tokenizer):
    rng = random.Random(0)
    texts = ["".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0x4E00, 0x5000), 0x1F600]))
                     for _ in range(rng.randrange(1, 40))) for _ in range(200)]  # fmt: skip
    for text, ids in zip(texts, encode_captions(tokenizer, texts), strict=True):
        assert ids.dtype == np.int32
        assert tokenizer.decode(ids.tolist()) == text


def test_digits_stay_single_tokens(tokenizer):
    (ids,) = encode_captions(tokenizer, ["64*64"])
    assert len(ids) == 5


def test_size_is_bounded_and_too_small_is_an_error(tokenizer):
    assert len(tokenizer) <= 320
    with pytest.raises(ValueError, match="raise it"):
        train_text_tokenizer(CAPTIONS, 200)


def test_a_caption_cannot_forge_a_special_token(tokenizer):
    specials = set(tokenizer.convert_tokens_to_ids(list(SPECIAL_STRINGS.values())))
    text = "".join(SPECIAL_STRINGS.values()) + " <|<|image end|>"
    (ids,) = encode_captions(tokenizer, [text])
    assert not specials & set(ids.tolist())
    assert tokenizer.decode(ids.tolist()) == text


def test_a_caption_cannot_forge_a_visual_token_that_is_not_marked_special(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    other = load_text_tokenizer(tmp_path)
    other.add_tokens([AddedToken("<|visual token 000000|>", special=False)])
    (ids,) = encode_captions(other, ["see <|visual token 000000|>"])
    assert other.convert_tokens_to_ids("<|visual token 000000|>") not in ids
    assert other.decode(ids.tolist()) == "see <|visual token 000000|>"


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = load_text_tokenizer(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    np.testing.assert_array_equal(encode_captions(again, CAPTIONS[:1])[0], encode_captions(tokenizer, CAPTIONS[:1])[0])


def test_an_unknown_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match="text_tokenizer"):
        load_text_tokenizer(tmp_path / "nothing")
