"""Damaged files: each one ends as kept or as rejected with a reason; no crash, no hang, no neighbour lost."""

import io
import multiprocessing
import resource
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tokenmill.stages.image.score import ScoreImages, ScoreImagesConfig
from tokenmill.stages.read.read import Read, ReadConfig
from tokenmill.stages.select.decide import Decide, DecideConfig
from tokenmill.stages.table.chain import Chain
from tokenmill.stages.table.columns import LISTED
from tokenmill.stages.table.limits import Limits
from tokenmill.stages.video.split import SplitVideos, SplitVideosConfig

NUM_IMAGES = 1800
NUM_VIDEOS = 300
BATCH = 50
LIMIT_S = 60.0
MAX_GROWTH_BYTES = 1 << 30
RULES = DecideConfig(image_rules={"sized": "width_px >= 8"}, video_rules={"sized": "width_px >= 8"})


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def good_images() -> dict[str, bytes]:
    """One file of each format and mode that the decoders here know."""
    rgb = scene(160, 120)
    turned = Image.Exif()
    turned[0x0112] = 6
    made = {
        "baseline.jpg": (rgb, "JPEG", {}),
        "progressive.jpg": (rgb, "JPEG", {"progressive": True}),
        "turned.jpg": (rgb, "JPEG", {"exif": turned}),
        "grey.jpg": (rgb.convert("L"), "JPEG", {}),
        "cmyk.jpg": (rgb.convert("CMYK"), "JPEG", {}),
        "rgb.png": (rgb, "PNG", {}),
        "palette.png": (rgb.convert("P"), "PNG", {}),
        "alpha.png": (rgb.convert("RGBA"), "PNG", {}),
        "sixteen.png": (Image.fromarray(np.asarray(rgb.convert("L"), np.uint16) * 257), "PNG", {}),
        "lossy.webp": (rgb, "WEBP", {}),
        "lossless.webp": (rgb, "WEBP", {"lossless": True}),
        "still.gif": (rgb, "GIF", {}),
        "plain.tif": (rgb, "TIFF", {}),
        "packed.tif": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "plain.bmp": (rgb, "BMP", {}),
        "plain.jp2": (rgb, "JPEG2000", {}),
        "plain.avif": (rgb, "AVIF", {}),
    }
    files = {}
    for name, (image, kind, options) in made.items():
        out = io.BytesIO()
        image.save(out, kind, **options)
        files[name] = out.getvalue()
    return files


def good_videos() -> dict[str, bytes]:
    """A second of moving noise in the usual containers."""
    files = {}
    for name, codec in (("a.mp4", "mpeg4"), ("b.mkv", "mpeg4"), ("c.webm", "libvpx"), ("d.avi", "mjpeg")):
        out = io.BytesIO()
        with av.open(out, "w", format={"mkv": "matroska"}.get(name[2:], name[2:])) as container:
            stream = container.add_stream(codec, rate=12)
            stream.width, stream.height = 96, 64
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for index in range(12):
                frame = av.VideoFrame.from_image(scene(96, 64, seed=index // 4))
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        files[name] = out.getvalue()
    return files


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Truncated, or some bytes changed, cleared, left out or doubled, in the header more often than elsewhere."""
    data = bytearray(content)
    end = len(data) if rng.random() < 0.6 else min(len(data), 256)
    match rng.integers(5):
        case 0:
            return bytes(data[: rng.integers(len(data))])
        case 1:
            for _ in range(int(rng.integers(1, 33))):
                data[int(rng.integers(end))] = int(rng.integers(256))
        case 2:
            start = int(rng.integers(end))
            length = int(rng.integers(1, 65))
            data[start : start + length] = bytes(len(data[start : start + length]))
        case 3:
            start = int(rng.integers(end))
            del data[start : start + int(rng.integers(1, 65))]
        case 4:
            start = int(rng.integers(end))
            data[start:start] = data[start : start + int(rng.integers(1, 65))]
    return bytes(data)


def work(folder: Path, kind: str, count: int) -> None:
    """Runs in a process of its own, so that a crash of a decoder is a failed test and not the end of all tests."""
    files = good_images() if kind == "image" else good_videos()
    rng = np.random.default_rng(20240 + count)
    names = sorted(files)
    first = (Read, (ReadConfig(),)), (ScoreImages, (ScoreImagesConfig(max_pixels=4_000_000),))
    split = (SplitVideos, (SplitVideosConfig(max_pixels=4_000_000, max_duration_s=60),))
    chain = Chain([*first, split, (Decide, (RULES,))], Limits(LIMIT_S, 1 << 31))
    intact = folder / f"intact-{names[0]}"
    intact.write_bytes(files[names[0]])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen: Counter[str] = Counter()
    for start in range(0, count, BATCH):
        paths = []
        for index in range(start, min(start + BATCH, count)):
            name = names[index % len(names)]
            path = folder / f"{index:05d}-{name}"
            path.write_bytes(damaged(files[name], rng))
            paths.append(str(path))
        uris = [*paths, str(intact)]
        listed = {"uri": uris, "size_bytes": [0] * len(uris), "source_caption": [None] * len(uris)}
        rows = chain(pa.table(listed, schema=LISTED)).to_pylist()
        assert {row["uri"] for row in rows} == set(uris), "a file left no row"
        for row in rows:
            assert row["reject_reason"] is None or row["reject_detail"], row
            seen[row["reject_reason"] or "kept"] += 1
        neighbours = [row["reject_reason"] for row in rows if row["uri"] == str(intact)]
        assert set(neighbours) == {None}, neighbours
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MAX_GROWTH_BYTES, f"memory grew by {grown >> 20} MiB"
    assert len(seen) > 2 and seen["kept"], f"the damage tests nothing: {seen}"


@pytest.mark.parametrize(("kind", "count"), [("image", NUM_IMAGES), ("video", NUM_VIDEOS)])
def test_damaged_files_are_accounted_for(tmp_path, kind, count):
    process = multiprocessing.get_context("spawn").Process(target=work, args=(tmp_path, kind, count))
    process.start()
    process.join(600)
    is_hanging = process.is_alive()
    process.kill()
    assert not is_hanging, "a decoder hangs"
    assert process.exitcode == 0, f"a decoder ended its process: exit code {process.exitcode}"
