import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from tokenmill.stages.image.measures import colour, measure, phash


def _distance(left: str, right: str) -> int:
    return (int(left, 16) ^ int(right, 16)).bit_count()


def test_scores_do_not_depend_on_the_resolution(texture) -> None:
    picture = texture(1200, 900)
    sizes = [(1200, 900), (800, 600), (400, 300)]
    scores = [measure(cv2.resize(picture, size, interpolation=cv2.INTER_AREA)) for size in sizes]
    for other in scores[1:]:
        assert other.luminance == pytest.approx(scores[0].luminance, abs=1)
        assert other.contrast == pytest.approx(scores[0].contrast, rel=0.05)
        assert other.colourfulness == pytest.approx(scores[0].colourfulness, rel=0.05)
        assert other.sharpness == pytest.approx(scores[0].sharpness, rel=0.3)
        assert _distance(other.phash, scores[0].phash) <= 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (5000, 2), (257, 256), (32, 4000)])
def test_every_shape_has_scores(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    scores = measure(picture)
    assert np.isfinite(scores[:4]).all() and len(scores.phash) == 16


def test_phash_survives_small_changes_and_tells_pictures_apart(texture) -> None:
    luma = texture(256, 256)[..., 1]
    brighter = np.clip(luma.astype(int) + 8, 0, 255).astype(np.uint8)
    assert _distance(phash(luma), phash(brighter)) <= 4
    assert _distance(phash(luma), phash(texture(256, 256, seed=1)[..., 1])) >= 16
    flat = np.full((64, 64), 77, np.uint8)
    assert phash(flat) == phash(flat[:32]) and len(phash(flat)) == 16


def test_blur_flatness_and_grey_are_seen(texture) -> None:
    picture = texture(256, 256)
    assert measure(cv2.GaussianBlur(picture, (9, 9), 0)).sharpness < measure(picture).sharpness / 2
    flat = measure(np.full((256, 256, 3), 128, np.uint8))
    assert (flat.sharpness, flat.luminance, flat.contrast, flat.colourfulness) == (0, 128, 0, 0)
    grey = np.repeat(picture[..., :1], 3, axis=2)
    assert colour(grey)[0] == pytest.approx(0, abs=1e-4) and colour(picture)[0] > 5
    sepia = (grey * np.array([1, 0.8, 0.6])).astype(np.uint8)
    assert colour(grey)[1] < 0.5 and colour(sepia)[1] < 1 < colour(picture)[1]


def test_colourfulness_is_the_published_formula(texture) -> None:
    picture = texture(64, 64)
    red, green, blue = (picture[..., i].astype(float) for i in range(3))
    rg, yb = red - green, (red + green) / 2 - blue
    expected = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
    assert colour(picture)[0] == pytest.approx(expected, rel=1e-5)


def test_colours_are_the_same_to_the_last_bit_on_every_cpu() -> None:
    """A BLAS adds in another order on each generation of CPUs; a cluster may have several."""
    script = (
        "import numpy as np; from tokenmill.stages.image.measures import colour; dice = np.random.default_rng(0);"
        "print([colour(dice.integers(0, 256, (side, side + 9, 3), np.uint8)) for side in (32, 64, 96, 200)])"
    )
    told = {
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, env=os.environ | kernel).stdout
        for kernel in ({"OPENBLAS_CORETYPE": name} for name in ("Prescott", "Haswell", "SkylakeX"))
    }
    assert len(told) == 1
