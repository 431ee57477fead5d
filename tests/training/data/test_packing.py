"""Packing: everything placed once, nothing cut, nothing overflows, and full packs on the mix of Emu3's first stage."""

import numpy as np
import pytest

from tokenmill.training.data.packing import best_fit_decreasing, fill


def test_properties_on_random_lengths():
    rng = np.random.default_rng(0)
    for _ in range(200):
        budget = int(rng.integers(20, 400))
        lengths = rng.integers(1, budget + 1, int(rng.integers(0, 60))).astype(np.int32)
        packs = best_fit_decreasing(lengths, budget)
        assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
        sizes = [int(lengths[pack].sum()) for pack in packs]
        assert all(0 < size <= budget for size in sizes)
        assert sum(size * 2 <= budget for size in sizes) <= 1, "two half-empty packs would have been one"
        assert packs == best_fit_decreasing(lengths, budget)


def test_it_is_best_fit_and_longest_first():
    # 6 and 5 open a pack each; 4 goes beside the 6 (leaves 0), 3 beside the 5
    assert best_fit_decreasing(np.array([3, 4, 5, 6]), 10) == [[3, 1], [2, 0]]


def test_mix_of_images_and_text_fills_packs():
    """60 % images of 4.1 to 4.6 thousand tokens, 40 % log-normal text, none above 5,120; packs of eight times that."""
    rng = np.random.default_rng(1)
    images = rng.integers(4_180, 4_600, 12_000)
    texts = np.clip(rng.lognormal(6.0, 1.0, 8_000), 16, 5_120).astype(int)
    lengths = rng.permutation(np.concatenate([images, texts]))
    filled = fill(best_fit_decreasing(lengths, 40_960), lengths, 40_960)
    assert filled >= 0.999
    assert fill(best_fit_decreasing(lengths, 8_192), lengths, 8_192) < filled - 0.1


def test_a_document_too_long_is_an_error():
    with pytest.raises(ValueError, match="leave it out"):
        best_fit_decreasing(np.array([11]), 10)


def test_nothing_to_pack():
    assert best_fit_decreasing(np.array([], np.int32), 10) == []
    assert fill([], np.array([], np.int32), 10) == 0.0
