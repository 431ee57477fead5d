"""A picture and the scene it was asked for -> which colours, shapes and relations are right. By pixels, with no model.

Every pixel is background, or an object pixel of the nearest of six colours in Lab (lightness at half weight, so that
hue decides); connected pixels of one colour and enough area are an object; its shape is the ideal outline that
overlaps best. An ideal outline overlaps by 0.51 to 0.78 with the other two and by 0.74 or more with itself after JPEG
of quality 30, so below 0.70 there is no shape. What ignoring the caption would score is measured, by `chance`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import cv2
import numpy as np

from tokenmill.pipeline.demo.scenes import CELLS, COLOURS, SHAPE_CELLS, SHAPES, Scene, draw, outline

_BACKGROUND_DISTANCE = 35.0  # Lab; half of what lies between yellow, the palest colour, and the backgrounds
_MIN_AREA_SHARE = 1 / 3  # of the smallest shape, the triangle
_MIN_OVERLAP = 0.70
_MAX_ASPECT = 1.6
_OUTLINE_PX = 48
_LAB_WEIGHTS = np.array([0.5, 1.0, 1.0], np.float32)


@dataclass(frozen=True)
class Found:
    """One object seen in a picture; `shape` is None where the outline fits none of the three."""

    shape: str | None
    colour: str
    row: float  # centroid, px
    column: float
    area_px: int


@dataclass(frozen=True)
class Verdict:
    """What of a scene a picture shows, per object in the caption's order; `relation` is None for a single object."""

    colours: tuple[bool, ...]
    shapes: tuple[bool, ...]
    relation: bool | None
    num_expected: int
    num_found: int

    @property
    def all_right(self) -> bool:
        """Every colour, shape and relation as asked, and nothing else in the picture."""
        return (
            all(self.colours)
            and all(self.shapes)
            and self.relation is not False
            and self.num_found == self.num_expected
        )


@dataclass(frozen=True)
class Score:
    """Shares, 0..1, over many verdicts: of objects, of objects, of pairs (None without any), of pictures."""

    colours: float
    shapes: float
    relations: float | None
    all_right: float
    num_pictures: int


def _lab(rgb_HWC: np.ndarray) -> np.ndarray:
    """float32 (H, W, 3): L 0..100, a and b about -100..100."""
    return cv2.cvtColor(rgb_HWC.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)


_COLOUR_NAMES = tuple(COLOURS)
_COLOURS_LAB = _lab(np.array([list(COLOURS.values())], np.uint8))[0]
_OUTLINES = {shape: outline(shape, _OUTLINE_PX) for shape in SHAPES}


def _background(image_HWC: np.ndarray) -> np.ndarray:
    """The median of the pixels in the fullest of 16^3 colour boxes: uint8-range float32 (3,)."""
    boxes = (image_HWC.reshape(-1, 3) >> 4).astype(np.int32) @ np.array([256, 16, 1])
    return np.median(image_HWC.reshape(-1, 3)[boxes == np.bincount(boxes).argmax()], axis=0).astype(np.float32)


def _shape(mask_HW: np.ndarray) -> str | None:
    """The outline with the greatest intersection over union, both stretched to one square."""
    rows, columns = np.where(mask_HW)
    crop = mask_HW[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(np.float32)
    if max(crop.shape) > _MAX_ASPECT * min(crop.shape):
        return None
    seen = cv2.resize(crop, (_OUTLINE_PX, _OUTLINE_PX), interpolation=cv2.INTER_LINEAR) > 0.5
    overlap = {shape: (seen & ideal).sum() / (seen | ideal).sum() for shape, ideal in _OUTLINES.items()}
    best = max(overlap, key=overlap.__getitem__)
    return best if overlap[best] >= _MIN_OVERLAP else None


def find_objects(image_HWC: np.ndarray) -> list[Found]:
    """The objects in a picture, uint8 (H, W, 3) RGB, the largest first.

    Raises ValueError for another dtype or shape.
    """
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3:
        raise ValueError(f"need uint8 (H, W, 3), not {image_HWC.dtype} {image_HWC.shape}; convert the picture to RGB")
    lab = _lab(image_HWC)
    from_background = np.linalg.norm(lab - _lab(_background(image_HWC)[None, None]), axis=-1)
    is_object = from_background > _BACKGROUND_DISTANCE
    to_colours = np.linalg.norm((lab[:, :, None] - _COLOURS_LAB) * _LAB_WEIGHTS, axis=-1)
    nearest = np.where(is_object, to_colours.argmin(axis=-1), -1)
    side_px = min(image_HWC.shape[:2]) / CELLS * SHAPE_CELLS
    cores: list[tuple[str, np.ndarray]] = []
    for index, name in enumerate(_COLOUR_NAMES):
        num_labels, labels = cv2.connectedComponents((nearest == index).astype(np.uint8), connectivity=4)
        masks = (labels == label for label in range(1, num_labels))
        cores += [(name, mask) for mask in masks if mask.sum() >= _MIN_AREA_SHARE * side_px**2 / 2]
    taken = np.any([mask for _, mask in cores], axis=0) if cores else np.zeros_like(is_object)
    rim = np.ones((5, 5), np.uint8)
    objects = []
    for name, core in cores:
        # a blurred edge passes through other colours on its way to the background: it belongs to the core beside it
        mask = core | (cv2.dilate(core.astype(np.uint8), rim).astype(bool) & is_object & ~taken)
        rows, columns = np.where(mask)
        objects.append(Found(_shape(mask), name, float(rows.mean()), float(columns.mean()), int(mask.sum())))
    return sorted(objects, key=lambda found: -found.area_px)


def _related(relation: str, first: Found, second: Found) -> bool:
    down, right = second.row - first.row, second.column - first.column
    along, across = (down, right) if relation == "above" else (right, down)
    return along > abs(across)


def judge(image_HWC: np.ndarray, scene: Scene) -> Verdict:
    """Compare a picture, uint8 (H, W, 3) RGB, with what was asked for.

    Objects are matched so that most colours fit, then most shapes. The relation counts only where both colours are
    right: otherwise which object is which would be a guess. Raises ValueError for another dtype or shape.
    """
    found = find_objects(image_HWC)
    wanted = scene.objects
    slots: list[Found | None] = [*found[:4], *[None] * len(wanted)]

    def matches(chosen: Sequence[Found | None]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        pairs = list(zip(chosen, wanted, strict=True))
        colours = tuple(one is not None and one.colour == colour for one, (_, colour) in pairs)
        return colours, tuple(one is not None and one.shape == shape for one, (shape, _) in pairs)

    best = max(permutations(slots, len(wanted)), key=lambda chosen: [sum(part) for part in matches(chosen)])
    colours, shapes = matches(best)
    relation = None
    if scene.relation is not None:
        first, second = best
        relation = all(colours) and first is not None and second is not None and _related(scene.relation, first, second)
    return Verdict(colours, shapes, relation, len(wanted), len(found))


def score(verdicts: Sequence[Verdict]) -> Score:
    """Shares over verdicts. Raises ValueError without any."""
    if not verdicts:
        raise ValueError("no verdicts to score; judge at least one picture")
    colours = [right for verdict in verdicts for right in verdict.colours]
    shapes = [right for verdict in verdicts for right in verdict.shapes]
    relations = [verdict.relation for verdict in verdicts if verdict.relation is not None]
    all_right = [verdict.all_right for verdict in verdicts]
    return Score(
        float(np.mean(colours)),
        float(np.mean(shapes)),
        float(np.mean(relations)) if relations else None,
        float(np.mean(all_right)),
        len(verdicts),
    )


def chance(scenes: Sequence[Scene], rng: np.random.Generator, images: Sequence[np.ndarray] | None = None) -> Score:
    """What pictures score against the caption of another, random scene of `scenes`.

    `images`, one per scene, are the pictures to judge (with a model's samples: what it would score if it ignored its
    prompt); without them each scene is drawn. Raises ValueError unless two captions differ.
    """
    if len({scene.caption for scene in scenes}) < 2:
        raise ValueError("chance needs scenes with at least two different captions")
    if images is None:
        images = [np.asarray(draw(scene, rng=rng)) for scene in scenes]
    verdicts = []
    for scene, image in zip(scenes, images, strict=True):
        others = [other for other in scenes if other.caption != scene.caption]
        verdicts.append(judge(image, others[rng.integers(len(others))]))
    return score(verdicts)
