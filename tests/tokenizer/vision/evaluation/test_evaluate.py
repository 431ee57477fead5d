"""The judge of a tokenizer: its figures equal those worked out by hand from codes and reconstructions."""

import math

import numpy as np
import pytest

from tokenmill.tokenizer.vision.evaluation.evaluate import Judge
from tokenmill.tokenizer.vision.evaluation.metrics import codebook_use, motion_psnr, psnr, ssim
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return VisionTokenizer.load("builtin")


def media(count, num_frames, side):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 1, side // 8, side // 8, 3), np.uint8).repeat(8, 2).repeat(8, 3)
    return np.concatenate([np.roll(coarse, shift, 3) for shift in range(num_frames)], axis=1)


def test_motion_psnr_of_a_known_error():
    still = np.full((3, 8, 8, 3), 100, np.uint8)
    brighter = still + 50
    assert motion_psnr(still, brighter) == math.inf, "a constant error is no error of motion"
    flicker = still.copy()
    flicker[1] += 10  # up by 10, down by 10: mean squared error 100
    assert motion_psnr(still, flicker) == pytest.approx(10 * math.log10(255**2 / 100))
    assert motion_psnr(flicker, still) == motion_psnr(still, flicker)
    with pytest.raises(ValueError, match="two frames or more"):
        motion_psnr(still[:1], still[:1])


def test_figures_of_images(tokenizer):
    originals = media(3, 1, 48)
    judge = Judge(tokenizer, "image", 48)
    examples = judge.add(["a", "b"], originals[:2]) + judge.add(["c"], originals[2:])
    codes = tokenizer.encode_images(originals[:, 0])
    decoded = tokenizer.decode_images(codes)
    figures = judge.figures()
    pairs = list(zip(originals[:, 0], decoded, strict=True))
    assert figures["psnr"] == pytest.approx(np.mean([psnr(a, b) for a, b in pairs]))
    assert figures["ssim"] == pytest.approx(np.mean([ssim(a, b) for a, b in pairs]))
    use = codebook_use(codes, tokenizer.codebook_size)
    assert {name: figures[name] for name in use} == use
    assert figures["bpp_nominal"] == pytest.approx(np.log2(tokenizer.codebook_size) / 64)
    assert figures["bpp_entropy"] == pytest.approx(use["bits"] / 64)
    assert figures["num_media"] == 3 and figures["encode_tokens_per_s"] > 0 < figures["decode_tokens_per_s"]
    assert figures["jpeg_bpp"] <= figures["bpp_nominal"]
    assert "motion_psnr" not in figures and "lpips" not in figures and "fid" not in figures
    assert [example.name for example in examples] == ["a", "b", "c"]
    np.testing.assert_array_equal(examples[2].decoded[0], decoded[2])
    assert examples[1].figures["psnr"] == pytest.approx(psnr(originals[1, 0], decoded[1]))
    assert examples[0].figures["jpeg_psnr"] == pytest.approx(psnr(originals[0, 0], examples[0].jpegs[0].picture))


def test_figures_of_clips(tokenizer):
    originals = media(2, 8, 32)
    judge = Judge(tokenizer, "video", 32)
    examples = judge.add(["a", "b"], originals)
    decoded = tokenizer.decode_clips(tokenizer.encode_clips(originals))
    figures = judge.figures()
    by_frame = [
        np.mean([psnr(a, b) for a, b in zip(x, y, strict=True)]) for x, y in zip(originals, decoded, strict=True)
    ]
    assert figures["psnr"] == pytest.approx(np.mean(by_frame))
    assert figures["motion_psnr"] == pytest.approx(np.mean([motion_psnr(originals[i], decoded[i]) for i in (0, 1)]))
    assert figures["bpp_nominal"] == pytest.approx(np.log2(tokenizer.codebook_size) / 64 / 4)
    assert figures["jpeg_bpp"] <= figures["bpp_nominal"] and figures["jpeg_forced_share"] == 1
    assert len(examples[0].jpegs) == 8


def test_lpips_and_fid_are_asked_where_given(tokenizer):
    class Counter:
        def __init__(self):
            self.calls = 0

        def __call__(self, a, b):
            self.calls += 1
            return [0.25] * len(a)

        def add(self, originals, decoded):
            self.calls += len(originals)

        def value(self):
            return 3.5

    lpips, fid = Counter(), Counter()
    judge = Judge(tokenizer, "image", 32, lpips, fid)
    judge.add(["a", "b"], media(2, 1, 32))
    figures = judge.figures()
    assert (figures["lpips"], figures["jpeg_lpips"], figures["fid"]) == (0.25, 0.25, 3.5)
    assert (lpips.calls, fid.calls) == (4, 2)
