"""The corpus of the built-in tokenizer: photos and videos whose licence is clear and open, drawn scenes, text pages.

    PYTHONPATH=. python benchmarks/builtin_corpus.py --data FOLDER --out build/builtin-corpus

FOLDER has a manifest.csv (file, kind, licence). Every tenth photo, every twelfth motion, scenes of other captions and
pages of other words are held out. Crops are drawn evenly over pixels, and what is small enough is shown at each size of
the config alike: the numbers below leave three fifths of the crops to photos. Writes train/ and held_out/; then

    tokenmill tokenizer train configs/builtin_tokenizer.yaml
    tokenmill tokenizer eval configs/builtin_tokenizer.yaml --folder build/builtin-corpus/held_out/photos
"""

import argparse
import csv
import shutil
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tokenmill.pipeline.demo import scenes
from tokenmill.pipeline.reports.video_file import write_video

OPEN = ("CC BY 2.0", "CC BY-SA 2.0", "CC BY 3.0", "public domain", "CC0")
COLLECTIONS = ("coco_mini", "documerica", "fsaowi", "immich", "met", "scikit_image", "usda", "wordpress_tt5")
VIDEOS = ("flower.webm", "friday.mp4", "mov_bbb.mp4", "nasa_13013.mp4", "bug_video_640.mp4")
NUM_SCENES = {64: 3000, 128: 300}  # by side in px
NUM_PAGES = {"train": 36, "held_out": 8}
PAGE_SIDE_PX = {"train": 208, "held_out": 256}
LETTERS_PX = {"train": (20, 24, 24, 28, 32, 40), "held_out": (24,)}
FACES = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")  # of matplotlib
HELD_OUT_WORDS = "Reading what a page says takes letters that stay apart: Quick Wizards Jump 1984 & 2026, (x + y) / 37."
ALPHABET = "eeetttaaaooiinnsshhrrddlluucmwfgypbvkxqjzETAOINSHRDLUCMWFGYPBVKXQJZ0123456789.,:;-!?()&%+="


def open_files(data: Path) -> list[Path]:
    """Photos of the collections, and the videos, whose licence names one of OPEN and leaves nothing unstated."""
    rows = csv.DictReader((data / "manifest.csv").open())
    found = []
    for row in rows:
        path = Path(row["file"])
        is_ours = path.name in VIDEOS or (path.parts[0] == "images" and path.parts[1] in COLLECTIONS)
        is_open = any(licence in row["licence"] for licence in OPEN) and "not stated" not in row["licence"]
        if is_ours and (is_open or path.name in VIDEOS):
            found.append(path)
    return sorted(found)


def page(part: str, rng: np.random.Generator) -> Image.Image:
    """A page of words in one size, each line in a face and a colour of its own.

    For training the words are random letters, so that no spelling is learned; held-out pages are of HELD_OUT_WORDS.
    """
    side, size = PAGE_SIDE_PX[part], int(rng.choice(LETTERS_PX[part]))
    is_dark = rng.random() < 0.25
    paper = rng.integers(0, 70, 3) if is_dark else rng.integers(190, 256, 3)
    image = Image.new("RGB", (side, side), tuple(paper.tolist()))
    canvas = ImageDraw.Draw(image)
    words = HELD_OUT_WORDS.split() if part == "held_out" else []
    top = float(rng.uniform(0, size / 2))
    while top < side - size / 2:
        ink = rng.integers(150, 256, 3) if is_dark else rng.integers(0, 120, 3)
        line = ""
        while len(line) * size * 0.45 < side:
            word = words.pop(0) if words else "".join(rng.choice(list(ALPHABET), rng.integers(1, 9)))
            line += word + " "
        canvas.text((float(rng.uniform(-4, 8)), top), line, tuple(ink.tolist()), font(size, rng))
        top += size * float(rng.uniform(1.15, 1.5))
    return image


def font(size_px: int, rng: np.random.Generator) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own face half of the time, else one of FACES."""
    if rng.random() < 0.5:
        return ImageFont.load_default(size_px)
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / str(rng.choice(FACES)), size_px)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="a folder with a manifest.csv")
    parser.add_argument("--out", type=Path, default=Path("build/builtin-corpus"), help="where the corpus is made")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    for part, kind in product(("train", "held_out"), ("photos", "videos", "scenes", "text", "motions")):
        (options.out / part / kind).mkdir(parents=True)
    files = open_files(options.data)
    for number, path in enumerate(path for path in files if path.parts[0] == "images"):
        part = "held_out" if number % 10 == 9 else "train"
        shutil.copyfile(options.data / path, options.out / part / "photos" / f"{path.parent.name}-{path.name}")
    for path in files:
        if path.parts[0] == "videos":
            shutil.copyfile(options.data / path, options.out / "train" / "videos" / path.name)
    rng = np.random.default_rng(1)
    for side, count in NUM_SCENES.items():
        train, held_out = scenes.split(0, count, scenes.NUM_HELD_OUT)
        for part, drawn in (("train", train), ("held_out", held_out)):
            for number, scene in enumerate(drawn):
                scenes.draw(scene, side, rng).save(options.out / part / "scenes" / f"{side}-{number:05d}.png")
    for part, count in NUM_PAGES.items():
        for number in range(count):
            page(part, rng).save(options.out / part / "text" / f"{number:03d}.png")
    moving = product(scenes.SHAPES, scenes.COLOURS, scenes.MOTIONS, scenes.BACKGROUNDS)
    for number, (shape, colour, motion, background) in enumerate(moving):
        frames = scenes.draw_motion(shape, colour, motion, background, scenes.SEGMENT_FRAMES, int(rng.integers(6)))
        part = "held_out" if number % 12 == 11 else "train"
        write_video(options.out / part / "motions" / f"{number:03d}.mp4", frames, scenes.FPS)
    for part in ("train", "held_out"):
        kinds = [f"{len(list(folder.iterdir()))} {folder.name}" for folder in sorted((options.out / part).iterdir())]
        print(f"{part}: {', '.join(kinds)}")


if __name__ == "__main__":
    main()
