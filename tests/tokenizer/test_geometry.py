"""Sizes near an area, the listed buckets, one resize, and the moments of a clip."""

import math

import numpy as np
import pytest
from PIL import Image

from tokenmill.tokenizer.geometry import AspectError, buckets, fit_area, resize, sample_times, trim_to_groups


@pytest.mark.parametrize("area_side_px, num_sizes, tokens", [(512, 229, (4020, 4170)), (720, 323, (7995, 8213))])
def test_buckets_are_those_of_emu3(area_side_px, num_sizes, tokens):
    """The counts that EMU3's rule gives for aspects up to 5:1."""
    sizes = buckets(area_side_px**2)
    counts = [width * height // 64 for width, height in sizes]
    assert len(sizes) == num_sizes and (min(counts), max(counts)) == tokens


@pytest.mark.parametrize("area_px, factor", [(64**2, 8), (100 * 100, 8), (128**2, 8), (512**2, 16)])
def test_every_picture_lands_in_a_listed_bucket(area_px, factor):
    sizes = set(buckets(area_px, factor))
    rng = np.random.default_rng(0)
    seen = set()
    for width, height in np.exp(rng.uniform(np.log(20), np.log(4000), (20_000, 2))).astype(int):
        if max(width, height) <= 5 * min(width, height):
            seen.add(fit_area(int(width), int(height), area_px, factor))
    assert seen <= sizes
    assert len(seen) > 0.8 * len(sizes)


def test_area_and_aspect_are_kept():
    rng = np.random.default_rng(1)
    for width, height in rng.integers(200, 3000, (500, 2)):
        if max(width, height) > 5 * min(width, height):
            continue
        new_width, new_height = fit_area(int(width), int(height), 512**2)
        assert new_width % 8 == new_height % 8 == 0
        assert abs(new_width * new_height / 512**2 - 1) < 0.03
        assert abs(math.log(new_width / new_height * height / width)) < 0.04
        assert fit_area(int(height), int(width), 512**2) == (new_height, new_width)


def test_the_aspect_limit():
    assert fit_area(500, 100, 64**2) == (144, 32)
    with pytest.raises(AspectError, match=r"aspect 5\.01 is over the limit of 5"):
        fit_area(501, 100, 64**2)
    with pytest.raises(AspectError):
        fit_area(100, 160, 64**2, max_aspect=1.5)
    with pytest.raises(ValueError, match="at least one pixel"):
        fit_area(0, 10, 64**2)


def test_small_pictures_keep_their_area_without_upscale():
    assert fit_area(100, 60, 512**2, upscale=False) == (104, 64)
    assert fit_area(3, 5, 512**2, upscale=False) == (8, 8)
    assert fit_area(2000, 1000, 512**2, upscale=False) == fit_area(2000, 1000, 512**2)
    width, height = fit_area(100, 60, 512**2)
    assert width * height > 500**2


def test_resize_is_one_bicubic_antialiased_step():
    frame = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    small = resize(frame, (48, 32))
    assert small.shape == (32, 48, 3) and small.dtype == np.uint8
    np.testing.assert_array_equal(small, np.asarray(Image.fromarray(frame).resize((48, 32), Image.Resampling.BICUBIC)))
    assert small.std() < 0.6 * frame.std()  # noise averages out where a plain bicubic would pick single pixels
    np.testing.assert_array_equal(resize(frame, (100, 60)), frame)
    with pytest.raises(ValueError, match="uint8 RGB"):
        resize(frame[..., 0], (48, 32))


def test_sample_times():
    np.testing.assert_allclose(sample_times(1.5, 3.5, 2.0, 100), [1.5, 2.0, 2.5, 3.0])
    np.testing.assert_allclose(sample_times(1.5, 3.51, 2.0, 100), [1.5, 2.0, 2.5, 3.0, 3.5])
    assert len(sample_times(0.1, 10.1, 8.0, 12)) == 12
    assert sample_times(2.0, 2.0, 8.0, 12).shape == (0,)
    for fps in (1.0, 8.0, 12.0, 23.976, 29.97):
        for num in range(1, 60):
            times = sample_times(0.3, 0.3 + num / fps, fps, 1000)
            assert len(times) == num, (fps, num)
    with pytest.raises(ValueError, match="above 0"):
        sample_times(0.0, 1.0, 0.0, 4)


def test_trim_to_groups():
    assert [trim_to_groups(n) for n in (0, 3, 4, 7, 8)] == [(0, 0), (0, 3), (4, 0), (4, 3), (8, 0)]
    assert trim_to_groups(7, group=2) == (6, 1)
