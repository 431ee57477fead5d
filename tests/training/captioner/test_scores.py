"""Captions beside the true ones."""

import math

import pytest

from tokenmill.training.captioner.scores import cider, same

TRUE = ["a red circle above a blue square", "a green triangle", "a yellow square left of a black circle"]


def test_a_caption_that_is_its_truth_has_ten_and_one_of_other_words_nothing():
    assert cider(TRUE, TRUE) == pytest.approx([10, 10, 10])
    assert cider(["nothing like it here", None, ""], TRUE) == [0, 0, 0]


def test_rare_words_count_more_than_common_ones():
    """`a` is in every caption and weighs nothing; `red` is in one."""
    wrong_colour, wrong_article = cider(
        ["a green circle above a blue square", "one green triangle"], [TRUE[0], TRUE[1]]
    )
    assert 0 < wrong_colour < 10 and 0 < wrong_article < 10
    assert cider(["a", "a", "a"], TRUE) == [0, 0, 0]


def test_as_computed_by_hand():
    """Unigrams and bigrams of two captions: idf of `red`, `blue` and of each bigram is ln 2, of `square` 0."""
    (found, _) = cider(["red square", "blue square"], ["red circle", "blue square"])
    # 1-grams: written {red: ln2, square: ln2} (square is in one truth), true {red: ln2, circle: ln2}: cosine 1/2
    # 2-grams: nothing in common: 0; longer ones are in neither
    assert found == pytest.approx(10 * (1 / 2 + 0) / 2)


def test_repeated_words_are_clipped_and_another_length_is_paid_for():
    once, thrice = (cider([text, "x"], ["red", "blue"])[0] for text in ("red", "red red red"))
    assert once == pytest.approx(10)
    # 1-grams: clipped product ln2^2, norms 3 ln2 x ln2: 1/3; no 2- and 3-gram of the truth: 0; length off by 2
    assert thrice == pytest.approx(10 * (1 / 3) / 3 * math.exp(-4 / 72))


def test_same_forgives_spaces_alone():
    assert same([" a red  circle", "a red circles", None], ["a red circle"] * 3) == [True, False, False]
