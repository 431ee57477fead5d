"""PSNR, SSIM and codebook use against values worked out by other means."""

import math

import cv2
import numpy as np
import pytest

from tokenmill.tokenizer.vision.evaluation.metrics import codebook_use, psnr, ssim


def picture(seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (8, 10, 3)).repeat(6, 0).repeat(6, 1)
    return np.clip(coarse + rng.normal(0, 10, coarse.shape), 0, 255).astype(np.uint8)


def test_psnr_of_a_known_error():
    a = np.full((16, 16, 3), 100, np.uint8)
    b = a.copy()
    b[::2] += 10  # mean squared error 50
    assert psnr(a, b) == pytest.approx(10 * math.log10(255**2 / 50))
    assert psnr(b, a) == psnr(a, b)
    assert psnr(a, a) == math.inf
    with pytest.raises(ValueError, match="one shape"):
        psnr(a, b[:8])


def ssim_by_opencv(a, b):
    """The same definition, its window by another library's Gaussian blur, valid positions only."""

    def luma(image):
        return image.astype(np.float64) @ [0.299, 0.587, 0.114]

    def blur(plane):
        return cv2.GaussianBlur(plane, (11, 11), 1.5)[5:-5, 5:-5]

    x, y = luma(a), luma(b)
    mx, my = blur(x), blur(y)
    vx, vy, cxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = 6.5025, 58.5225
    return (((2 * mx * my + c1) * (2 * cxy + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


def test_ssim_equals_its_definition():
    a = picture()
    blurred = cv2.GaussianBlur(a, (5, 5), 2)
    noisy = np.clip(a + np.random.default_rng(1).normal(0, 30, a.shape), 0, 255).astype(np.uint8)
    for other in (blurred, noisy, picture(1)):
        assert ssim(a, other) == pytest.approx(ssim_by_opencv(a, other), abs=1e-9)
    assert ssim(a, a) == pytest.approx(1)
    assert ssim(a, blurred) > ssim(a, picture(1))
    with pytest.raises(ValueError, match="11 px"):
        ssim(a[:10], a[:10])


def test_codebook_use():
    flat = codebook_use(np.arange(64).reshape(4, 16).repeat(3, 0), 256)
    assert flat["codes_used"] == 64 and flat["share_used"] == 0.25
    assert flat["bits"] == pytest.approx(6) and flat["perplexity"] == pytest.approx(64)
    single = codebook_use(np.full((5,), 7), 256)
    assert (single["codes_used"], single["bits"], single["perplexity"]) == (1, 0, 1)
    assert codebook_use(np.array([0, 0, 0, 1]), 2)["bits"] == pytest.approx(0.811278, abs=1e-6)
    assert codebook_use(np.zeros(0, np.int64), 4)["codes_used"] == 0
