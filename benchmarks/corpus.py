"""A folder of many different JPEGs made from a few real photos: crops, mirrored or not, each encoded anew."""

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

QUALITY = 88


def photos(folder: Path, min_px: int = 400) -> list[Image.Image]:
    """RGB pictures below `folder` with a shorter edge of at least `min_px`. Raises SystemExit where there are none."""
    found = []
    for path in sorted(folder.rglob("*.jp*g")):
        try:
            with Image.open(path) as image:
                if min(image.size) >= min_px and image.mode == "RGB":
                    found.append(ImageOps.exif_transpose(image).copy())
        except OSError:
            continue
    if not found:
        raise SystemExit(f"{folder}: no JPEG of at least {min_px} px below it; give --photos FOLDER")
    return found


def variants(sources: list[Image.Image], count: int, megapixels: float | None, seed: int = 0) -> Iterator[bytes]:
    """`count` JPEGs, no two alike; at the size of their source, or scaled to about `megapixels`."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        image = sources[index % len(sources)]
        width, height = image.size
        left, top = (int(rng.integers(0, side // 8 + 1)) for side in (width, height))
        image = image.crop((left, top, width - int(rng.integers(0, width // 8 + 1)), height))
        if megapixels is not None:
            scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        if rng.random() < 0.5:
            image = ImageOps.mirror(image)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=QUALITY)
        yield out.getvalue()


def write(folder: Path, source: Path, count: int, megapixels: float | None) -> list[Path]:
    """`count` files below `folder`, made once."""
    paths = [folder / f"{index // 1000:03d}" / f"{index:06d}.jpg" for index in range(count)]
    if not all(path.exists() for path in paths):
        for path, content in zip(paths, variants(photos(source), count, megapixels), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return paths


def arguments(description: str, num: int) -> argparse.ArgumentParser:
    """The options that the image benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/images"), help="a folder of real photos")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where the corpus is made")
    parser.add_argument("--num", type=int, default=num, help="how many images")
    return parser
