"""The corpus of the built-in tokenizer: photos and videos whose licence is clear and open, and drawn scenes.

    python benchmarks/builtin_corpus.py --data FOLDER --out build/builtin-corpus

FOLDER has a manifest.csv (file, kind, licence). Every tenth photo is held out. Writes train/ and held_out/; then

    tokenmill tokenizer train configs/builtin_tokenizer.yaml
    tokenmill tokenizer eval configs/builtin_tokenizer.yaml --folder build/builtin-corpus/held_out
"""

import argparse
import csv
import shutil
from pathlib import Path

import numpy as np

from pipeline.demo import scenes
from pipeline.demo.video_file import write_video

OPEN = ("CC BY 2.0", "CC BY-SA 2.0", "CC BY 3.0", "public domain", "CC0")
COLLECTIONS = ("coco_mini", "documerica", "fsaowi", "immich", "met", "scikit_image", "usda", "wordpress_tt5")
VIDEOS = ("flower.webm", "friday.mp4", "mov_bbb.mp4", "nasa_13013.mp4", "bug_video_640.mp4")
NUM_SCENES = {64: 3000, 128: 300}  # by side in px


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="a folder with a manifest.csv")
    parser.add_argument("--out", type=Path, default=Path("build/builtin-corpus"), help="where the corpus is made")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    photos = [path for path in open_files(options.data) if path.parts[0] == "images"]
    for number, path in enumerate(photos):
        target = options.out / ("held_out" if number % 10 == 9 else "train") / f"{path.parent.name}-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(options.data / path, target)
    for path in open_files(options.data):
        if path.parts[0] == "videos":
            shutil.copyfile(options.data / path, options.out / "train" / path.name)
    rng = np.random.default_rng(1)
    for side, count in NUM_SCENES.items():
        train, held_out = scenes.split(0, count, scenes.NUM_HELD_OUT)
        for name, drawn in (("train", train), ("held_out", held_out)):
            for number, scene in enumerate(drawn):
                scenes.draw(scene, side, rng).save(options.out / name / f"scene-{side}-{number:05d}.png")
    for number, (shape, colour, motion, background) in enumerate(
        (shape, colour, motion, background)
        for shape in scenes.SHAPES
        for colour in scenes.COLOURS
        for motion in scenes.MOTIONS
        for background in scenes.BACKGROUNDS
    ):
        frames = scenes.draw_motion(shape, colour, motion, background, scenes.SEGMENT_FRAMES, int(rng.integers(6)))
        name = "held_out" if number % 12 == 11 else "train"
        write_video(options.out / name / f"motion-{number:03d}.mp4", frames, scenes.FPS)
    for name in ("train", "held_out"):
        print(f"{name}: {sum(1 for _ in (options.out / name).iterdir())} files")


if __name__ == "__main__":
    main()
