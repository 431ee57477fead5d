"""The judge: right on drawn and on degraded scenes, and not content with anything else."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from tokenmill.pipeline.demo.judge import chance, find_objects, judge, score
from tokenmill.pipeline.demo.scenes import COLOURS, RELATIONS, SHAPES, Scene, draw, split

RED_ABOVE_BLUE = Scene("circle", "red", "above", "square", "blue")


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Scene, np.ndarray]]:
    rng = np.random.default_rng(7)
    return [(scene, np.asarray(draw(scene, 64, rng))) for scene in split(7, 300, 0)[0]]


def _picture(scene: Scene, seed: int = 0) -> np.ndarray:
    return np.asarray(draw(scene, 64, np.random.default_rng(seed)))


def _as_jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=30)
    return np.asarray(Image.open(buffer))


def _half_size_and_back(image: np.ndarray) -> np.ndarray:
    small = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (64, 64), interpolation=cv2.INTER_CUBIC)


def test_drawn_scenes_are_right(drawn):
    result = score([judge(image, scene) for scene, image in drawn])
    assert result.num_pictures == 300
    assert result.relations is not None
    assert min(result.colours, result.shapes, result.relations, result.all_right) >= 0.98


@pytest.mark.parametrize(
    "degraded",
    [
        _as_jpeg,
        _half_size_and_back,
        lambda image: cv2.GaussianBlur(image, (0, 0), 1.2),
        lambda image: (image * 0.6 + 128 * 0.4).astype(np.uint8),
    ],
    ids=["jpeg", "half", "blur", "pale"],
)
def test_degraded_scenes_are_still_read(drawn, degraded):
    result = score([judge(degraded(image), scene) for scene, image in drawn])
    assert result.relations is not None
    assert min(result.colours, result.shapes, result.relations, result.all_right) >= 0.95


@pytest.mark.parametrize("size_px", [32, 128])
def test_other_sizes(size_px):
    image = np.asarray(draw(RED_ABOVE_BLUE, size_px))
    assert judge(image, RED_ABOVE_BLUE).all_right


def test_a_wrong_shape_is_only_that():
    verdict = judge(_picture(Scene("triangle", "red", "above", "square", "blue")), RED_ABOVE_BLUE)
    assert verdict.colours == (True, True)
    assert verdict.shapes == (False, True)
    assert verdict.relation is True
    assert not verdict.all_right


def test_a_wrong_colour_leaves_no_relation_to_judge():
    verdict = judge(_picture(Scene("circle", "green", "above", "square", "blue")), RED_ABOVE_BLUE)
    assert verdict.colours == (False, True)
    assert verdict.shapes == (True, True)
    assert verdict.relation is False


@pytest.mark.parametrize("shown", RELATIONS)
@pytest.mark.parametrize("asked", RELATIONS)
def test_relations(shown, asked):
    scene = Scene("circle", "red", asked, "square", "blue")
    for seed in range(5):
        verdict = judge(_picture(Scene("circle", "red", shown, "square", "blue"), seed), scene)
        assert verdict.relation == (shown == asked)
        assert verdict.all_right == (shown == asked)


def test_the_order_of_the_caption_counts():
    swapped = Scene("circle", "blue", "above", "square", "red")
    verdict = judge(_picture(swapped), RED_ABOVE_BLUE)
    assert verdict.colours == (True, True)
    assert verdict.shapes == (False, False)
    assert verdict.relation is False


def test_one_object_too_many_is_not_all_right():
    verdict = judge(_picture(RED_ABOVE_BLUE), Scene("circle", "red"))
    assert verdict.colours == verdict.shapes == (True,)
    assert verdict.relation is None
    assert not verdict.all_right


def test_a_missing_object():
    verdict = judge(_picture(Scene("square", "blue")), RED_ABOVE_BLUE)
    assert verdict.colours == verdict.shapes == (False, True)
    assert verdict.num_found == 1
    assert verdict.relation is False


@pytest.mark.parametrize("kind", ["plain", "noise", "stripe"])
def test_pictures_of_nothing_show_no_shape(kind):
    image = np.full((64, 64, 3), 240, np.uint8)
    if kind == "noise":
        image = np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8)
    elif kind == "stripe":
        image[20:30] = COLOURS["red"]
    assert all(found.shape is None for found in find_objects(image))
    assert not any(judge(image, RED_ABOVE_BLUE).shapes)


def test_every_shape_in_every_colour_is_found():
    for shape in SHAPES:
        for colour in COLOURS:
            (found,) = find_objects(_picture(Scene(shape, colour), 1))
            assert (found.shape, found.colour) == (shape, colour)
            assert 250 < found.area_px < 600


@pytest.mark.parametrize("image", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32)])
def test_other_arrays_are_refused(image):
    with pytest.raises(ValueError, match="uint8"):
        judge(image, RED_ABOVE_BLUE)


def test_chance_is_far_below_and_comes_from_the_pictures_given():
    scenes = split(5, 200, 0)[0]
    by_chance = chance(scenes, np.random.default_rng(0))
    assert 0.15 < by_chance.colours < 0.45
    assert 0.25 < by_chance.shapes < 0.55
    assert by_chance.relations is not None and by_chance.relations < 0.1
    assert by_chance.all_right < 0.05
    blank = [np.full((64, 64, 3), 240, np.uint8)] * len(scenes)
    assert chance(scenes, np.random.default_rng(0), blank).colours == 0
    assert chance(scenes, np.random.default_rng(0)) == by_chance


def test_chance_and_score_need_something_to_compare():
    with pytest.raises(ValueError, match="different captions"):
        chance([RED_ABOVE_BLUE] * 3, np.random.default_rng(0))
    with pytest.raises(ValueError, match="verdicts"):
        score([])
