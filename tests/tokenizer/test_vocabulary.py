"""Where codes begin: behind the text ids, or at the visual tokens that a tokenizer already has."""

import pytest

from tokenmill.tokenizer.text import SPECIAL_STRINGS, train_text_tokenizer
from tokenmill.tokenizer.vocabulary import Vocabulary


@pytest.fixture()
def tokenizer():
    return train_text_tokenizer(["a red circle"], 300)


def test_codes_follow_the_text(tokenizer):
    vocabulary = Vocabulary.of(tokenizer, 4096)
    assert vocabulary.vision_offset == len(tokenizer)
    assert vocabulary.size == len(tokenizer) + 4096
    for role, text in SPECIAL_STRINGS.items():
        assert getattr(vocabulary, role) == tokenizer.convert_tokens_to_ids(text)


def test_codes_are_the_visual_tokens_that_exist(tokenizer):
    text_size = len(tokenizer)
    tokenizer.add_tokens([f"<|visual token {code:06d}|>" for code in range(16)])
    vocabulary = Vocabulary.of(tokenizer, 16)
    assert (vocabulary.vision_offset, vocabulary.size) == (text_size, text_size + 16) == (text_size, len(tokenizer))


@pytest.mark.parametrize("codebook_size", [8, 32])
def test_visual_tokens_of_another_codebook_are_an_error(tokenizer, codebook_size):
    tokenizer.add_tokens([f"<|visual token {code:06d}|>" for code in range(16)])
    with pytest.raises(ValueError, match="codebook of"):
        Vocabulary.of(tokenizer, codebook_size)


def test_ids_that_collide_are_an_error(tokenizer):
    good = Vocabulary.of(tokenizer, 16).model_dump()
    with pytest.raises(ValueError, match="must differ"):
        Vocabulary(**{**good, "eol": good["eof"]})
    with pytest.raises(ValueError, match="must differ"):
        Vocabulary(**{**good, "vision_offset": good["eov"]})


def test_save_and_load(tokenizer, tmp_path):
    vocabulary = Vocabulary.of(tokenizer, 16)
    vocabulary.save(tmp_path)
    assert Vocabulary.load(tmp_path) == vocabulary
