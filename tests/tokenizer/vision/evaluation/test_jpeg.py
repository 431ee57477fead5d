"""JPEG at a number of bits: as many as there are and no more, at the best factor, forced only where it must be."""

import io

import numpy as np
import pytest
from PIL import Image

from tokenmill.tokenizer.vision.evaluation.jpeg import jpeg_of, scan_bits
from tokenmill.tokenizer.vision.evaluation.metrics import psnr


def picture(noise=12):
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (8, 12, 3)).repeat(16, 0).repeat(16, 1)
    return np.clip(coarse + rng.normal(0, noise, coarse.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("bits_per_px", [0.05, 0.1875, 0.5, 2.0])
def test_bits_are_used_and_not_exceeded(bits_per_px):
    frame = picture()
    max_bits = bits_per_px * frame[..., 0].size
    found = jpeg_of(frame, max_bits)
    assert found.picture.shape == frame.shape and found.picture.dtype == np.uint8
    assert 0.5 * max_bits < found.bits <= max_bits
    assert found.is_forced == (bits_per_px < 0.125)  # 4:2:0 spends 32 bits on 16 x 16 px at the least
    assert found.factor > 1 or not found.is_forced


def test_more_bits_are_a_better_picture():
    frame = picture()
    scores = [psnr(frame, jpeg_of(frame, bits).picture) for bits in (2_000, 5_000, 20_000, 80_000)]
    assert scores == sorted(scores) and scores[-1] > scores[0] + 3


def test_with_plenty_of_bits_it_is_the_best_plain_jpeg():
    frame = picture()
    found = jpeg_of(frame, 1e9)
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "JPEG", quality=95, subsampling="4:2:0")
    assert (found.quality, found.factor, found.is_forced) == (95, 1, False)
    np.testing.assert_array_equal(found.picture, np.asarray(Image.open(content)))


def test_only_the_scan_is_counted():
    frame = picture(0)
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "JPEG", quality=50)
    plain = scan_bits(content.getvalue())
    with_comment = io.BytesIO()
    Image.fromarray(frame).save(with_comment, "JPEG", quality=50, comment=b"x" * 5000)
    assert scan_bits(with_comment.getvalue()) == plain
    assert 0 < plain < 8 * (len(content.getvalue()) - 500)


def test_impossible_bits_give_the_least_that_there_is():
    found = jpeg_of(picture(), 1)
    assert found.is_forced and found.factor == 16 and found.quality == 1 and found.bits > 1
