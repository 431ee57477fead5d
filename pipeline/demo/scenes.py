"""Words -> pictures: coloured shapes drawn from exact captions, and the small corpus of the demo made of them.

A caption such as "a red circle above a blue square" says all there is to see, so whether a generated picture obeys its
caption is a matter of counting (pipeline/demo/judge.py), not of taste. Shapes are 3/8 of a side and stand on a lattice
of 1/8 (24 and 8 px of 64): a tokenizer that shrinks 8 times sees about 200 distinct patches, and a small codebook
holds them.
"""

import json
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tokenmill.pipeline.demo.broken import write_broken
from tokenmill.pipeline.reports.video_file import write_video

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (220, 38, 38),
    "yellow": (250, 204, 21),
    "green": (34, 160, 70),
    "blue": (37, 99, 235),
    "purple": (160, 60, 200),
    "black": (24, 24, 27),
}
SHAPES = ("circle", "square", "triangle")
PARTS = ("images", "videos", "bad", "web")  # folders of a corpus
SCENE = "scene_"  # begins the names of their files
RELATIONS = ("above", "left of")  # captions name objects in drawing order: the reverse takes many times the training
MOTIONS: dict[str, tuple[int, int]] = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}  # rows, columns
BACKGROUNDS: tuple[RGB, ...] = ((253, 242, 217), (219, 234, 254))  # warm, cool: 90 degrees of hue apart, so cuts show

CELLS = 8  # the lattice: cells per side
SHAPE_CELLS = 3
FPS = 12
SEGMENT_FRAMES = 24
VIDEO_SIZE_PX = (64, 96)
NUM_HELD_OUT = 48

_SUPERSAMPLING = 4
_SPANS = ((0, 4), (1, 5))  # first cell of the nearer and the farther object: a gap of one cell
_SINGLE_EVERY = 4


@dataclass(frozen=True)
class Scene:
    """One object, or two of different colours in a relation (then the last three are all set)."""

    shape1: str
    colour1: str
    relation: str | None = None
    shape2: str | None = None
    colour2: str | None = None

    def __post_init__(self) -> None:
        second = (self.relation, self.shape2, self.colour2)
        if any(part is None for part in second) and second != (None, None, None):
            raise ValueError(f"{self}: give relation, shape2 and colour2 together, or none of them")
        if self.colour1 == self.colour2:
            raise ValueError(f"{self}: two objects of one colour cannot be told apart; choose another colour")

    @property
    def objects(self) -> list[tuple[str, str]]:
        """(shape, colour) of each object, in the caption's order."""
        first = [(self.shape1, self.colour1)]
        return first if self.shape2 is None or self.colour2 is None else [*first, (self.shape2, self.colour2)]

    @property
    def caption(self) -> str:
        """The sentence that says all of it: "a red circle", "a red circle above a blue square"."""
        return f" {self.relation} ".join(f"a {colour} {shape}" for shape, colour in self.objects)


@dataclass(frozen=True)
class Corpus:
    """What `write_corpus` wrote: counts, the captions kept out of training, and {bad file: why it must be rejected}."""

    num_images: int
    num_videos: int
    held_out: tuple[Scene, ...]
    bad: dict[str, str]
    hidden: tuple[str, ...] = ()  # files whose captions were taken out (pipeline/demo/captions.py)
    joined: dict[str, str] = field(default_factory=dict)  # file with a web page -> its whole caption (joins.py)


def _paint(canvas: ImageDraw.ImageDraw, shape: str, colour: str, top: float, left: float, side: float) -> None:
    """One shape that fills the square at (top, left), in supersampled pixels."""
    bottom, right = top + side - 1, left + side - 1
    if shape == "circle":
        canvas.ellipse((left, top, right, bottom), fill=COLOURS[colour])
    elif shape == "square":
        canvas.rectangle((left, top, right, bottom), fill=COLOURS[colour])
    else:
        canvas.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], fill=COLOURS[colour])


def outline(shape: str, side_px: int) -> np.ndarray:
    """The shape alone, as large as its square: bool (side_px, side_px)."""
    image = Image.new("RGB", (side_px, side_px), "white")
    _paint(ImageDraw.Draw(image), shape, "black", 0, 0, side_px)
    return np.asarray(image)[..., 0] < 128


def draw(scene: Scene, size_px: int = 64, rng: np.random.Generator | None = None) -> Image.Image:
    """The scene as an RGB picture, `size_px` x `size_px`; `rng` (default: seed 0) chooses place and background.

    Raises ValueError unless `size_px` is a multiple of 8.
    """
    if size_px < CELLS or size_px % CELLS:
        raise ValueError(f"size_px = {size_px}: the lattice needs a multiple of {CELLS}, such as 64")
    rng = rng or np.random.default_rng(0)
    if scene.relation is None:
        places = rng.integers(1, 5, size=(1, 2))
    else:
        # In line: a few hundred pictures teach a small model eight places of a pair, not many more.
        spans, across = _SPANS[rng.integers(len(_SPANS))], [rng.integers(2, 4)] * 2
        places = np.stack([spans, across] if scene.relation == "above" else [across, spans], axis=1)
    cell = size_px // CELLS * _SUPERSAMPLING
    image = Image.new("RGB", (size_px * _SUPERSAMPLING,) * 2, BACKGROUNDS[rng.integers(len(BACKGROUNDS))])
    canvas = ImageDraw.Draw(image)
    for (shape, colour), (row, column) in zip(scene.objects, places, strict=True):
        _paint(canvas, shape, colour, int(row) * cell, int(column) * cell, SHAPE_CELLS * cell)
    return image.reduce(_SUPERSAMPLING)


def draw_motion(shape: str, colour: str, motion: str, background: RGB, num_frames: int, lane: int) -> list[np.ndarray]:
    """Frames, each uint8 (64, 96, 3) RGB, of a shape that crosses the picture in lane 0..5 (cells from top or left)."""
    size = np.array(VIDEO_SIZE_PX)
    side = size.min() // CELLS * SHAPE_CELLS
    step, room = np.array(MOTIONS[motion]), size - side
    start = np.where(step < 0, room, 0) + (step == 0) * lane * (size.min() // CELLS)
    frames = []
    for index in range(num_frames):
        top, left = np.round(start + step * room * index / max(1, num_frames - 1)).astype(int) * _SUPERSAMPLING
        image = Image.new("RGB", (VIDEO_SIZE_PX[1] * _SUPERSAMPLING, VIDEO_SIZE_PX[0] * _SUPERSAMPLING), background)
        _paint(ImageDraw.Draw(image), shape, colour, int(top), int(left), int(side) * _SUPERSAMPLING)
        frames.append(np.asarray(image.reduce(_SUPERSAMPLING)))
    return frames


def split(seed: int, num_train: int, num_held_out: int) -> tuple[list[Scene], list[Scene]]:
    """Training scenes (a caption may come again) and held-out ones, all different and never among the former.

    Every fourth training scene is a single object. The first 24 already show each colour, shape and relation, so what
    is held out is only ever a new combination. Raises ValueError below 24, or to hold out more than half of all pairs.
    """
    rng = np.random.default_rng(seed)
    names = list(COLOURS)
    singles = [Scene(SHAPES[(i + i // len(names)) % len(SHAPES)], names[i % len(names)]) for i in range(18)]
    objects = list(product(SHAPES, COLOURS))
    by_relation = []
    for relation in RELATIONS:
        pairs = [Scene(s1, c1, relation, s2, c2) for (s1, c1), (s2, c2) in product(objects, objects) if c1 != c2]
        by_relation.append([pairs[index] for index in rng.permutation(len(pairs))])
    pairs = [scene for group in zip(*by_relation, strict=True) for scene in group]
    if num_train < 24 or not 0 <= num_held_out <= len(pairs) // 2:
        raise ValueError(f"need num_train >= 24 and num_held_out <= {len(pairs) // 2}, not {num_train}, {num_held_out}")
    held_out, shown = pairs[:num_held_out], pairs[num_held_out:]
    train = [
        singles[i // _SINGLE_EVERY % len(singles)]
        if i % _SINGLE_EVERY == 0
        else shown[(i - i // _SINGLE_EVERY - 1) % len(shown)]
        for i in range(num_train)
    ]
    return train, held_out


def _write_videos(folder: Path, num_videos: int, rng: np.random.Generator) -> None:
    """`moving_*`: one scene; `cut_*`: two or three, hard cuts between; `fade_*`: two, through black.

    All scenes of a video show one object in one motion on changing backgrounds: the caption holds for every clip.
    """
    for index in range(num_videos):
        shape, colour, motion = rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice(list(MOTIONS))
        is_fade, num_cuts = index == num_videos - 1, (0, 1, 0, 2)[index % 4]
        num_segments = 2 if is_fade else num_cuts + 1
        first = int(rng.integers(2))
        segments = [
            draw_motion(shape, colour, motion, BACKGROUNDS[(first + i) % 2], SEGMENT_FRAMES, int(rng.integers(6)))
            for i in range(num_segments)
        ]
        if is_fade:
            dim = np.clip(np.arange(SEGMENT_FRAMES, dtype=np.float32) / 6 - 0.5, 0, 1)
            segments[0] = [(f * d).astype(np.uint8) for f, d in zip(segments[0], dim[::-1], strict=True)]
            segments[1] = [(f * d).astype(np.uint8) for f, d in zip(segments[1], dim, strict=True)]
        kind = "fade" if is_fade else "cut" if num_cuts else "moving"
        path = folder / f"{kind}_{index + 1:04d}.mp4"
        write_video(path, [frame for segment in segments for frame in segment], FPS)
        path.with_suffix(".txt").write_text(f"a {colour} {shape} moves {motion}\n")


def write_corpus(
    folder: Path, num_images: int = 1600, num_videos: int = 12, seed: int = 0, size_px: int = 64
) -> Corpus:
    """Write images/, videos/ and bad/ below `folder`, which may hold no files of an earlier, different corpus.

    The first half of the images has its captions in images/captions.jsonl ({"file": name in images/, "caption"}), the
    rest, like the videos, in a .txt beside the file. No two images are equal byte for byte.
    Raises ValueError for fewer than 24 images, or for so many that single objects have no new place left.
    """
    rng = np.random.default_rng(seed)
    train, held_out = split(seed, num_images, NUM_HELD_OUT)
    images = folder / "images"
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    images.mkdir(exist_ok=True)
    seen: set[bytes] = set()
    lines = []
    for index, scene in enumerate(train):
        for _ in range(200):
            picture = draw(scene, size_px, rng)
            if picture.tobytes() not in seen:
                break
        else:
            raise ValueError(f"num_images = {num_images}: no new picture of '{scene.caption}' left; ask for fewer")
        seen.add(picture.tobytes())
        name = f"{SCENE}{index + 1:04d}.png"
        picture.save(images / name)
        if index < num_images // 2:
            lines.append(json.dumps({"file": name, "caption": scene.caption}) + "\n")
        else:
            (images / name).with_suffix(".txt").write_text(scene.caption + "\n")
    (images / "captions.jsonl").write_text("".join(lines))
    _write_videos(folder / "videos", num_videos, rng)
    fresh = [draw(scene, size_px, rng) for scene in held_out[:6]]
    bad = write_broken(folder / "bad", [images / f"{SCENE}0001.png", images / f"{SCENE}0002.png"], fresh, rng)
    return Corpus(num_images, num_videos, tuple(held_out), bad)
