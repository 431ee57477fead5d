"""Damaged media of every format: each one ends as kept or as rejected with a reason; no crash, no hang, no neighbour
lost.

Decoding costs milliseconds, so there are fewer of the slow formats than of what is only read; the numbers of the slow
tests are what a minute of a CPU allows for all images, and one for all videos.
"""

import io
import multiprocessing
import resource
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests import fuzzing
from tokenmill.stages.image.score import ScoreImages, ScoreImagesConfig
from tokenmill.stages.read.formats import UNSUPPORTED, sniff
from tokenmill.stages.read.read import Read, ReadConfig
from tokenmill.stages.select.decide import Decide, DecideConfig
from tokenmill.stages.table.chain import Chain
from tokenmill.stages.table.columns import LISTED
from tokenmill.stages.table.limits import Limits
from tokenmill.stages.video.split import SplitVideos, SplitVideosConfig

pytestmark = pytest.mark.hostile

FEW_IMAGES, FEW_VIDEOS = 150, 25  # of a format
MANY_IMAGES, MANY_VIDEOS = 3_000, 1_000
BATCH = 50
LIMIT_S = 60.0
MAX_GROWTH_BYTES = 1 << 30
RULES = DecideConfig(image_rules={"sized": "width_px >= 8"}, video_rules={"sized": "width_px >= 8"})
SIZE = 64, 48
# Container, codec, pixels.
VIDEOS = {
    "mp4": [("mp4", "libx264", "yuv420p"), ("mov", "mpeg4", "yuv420p")],
    "matroska": [("matroska", "mpeg4", "yuv420p"), ("matroska", "libx265", "yuv420p")],
    "webm": [("webm", "libvpx", "yuv420p"), ("webm", "libvpx-vp9", "yuv420p")],
    "avi": [("avi", "mjpeg", "yuvj420p"), ("avi", "rawvideo", "yuv420p")],
    "flv": [("flv", "flv", "yuv420p")],
    "mpegts": [("mpegts", "libx264", "yuv420p")],
    "mpeg": [("mpeg", "mpeg2video", "yuv420p")],
    "asf": [("asf", "wmv2", "yuv420p")],
    "ogg": [("ogg", "libvpx", "yuv420p")],
    "y4m": [("yuv4mpegpipe", "wrapped_avframe", "yuv420p")],
}


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def good_images() -> dict[str, list[bytes]]:
    """Of each format one file of each of its modes; of those that are not decoded here, what begins like one."""
    rgb, moving = scene(*SIZE), {"save_all": True, "append_images": [scene(*SIZE, seed=1)]}
    turned, deep = Image.Exif(), Image.fromarray(np.asarray(rgb.convert("L"), np.uint16) * 257)
    turned[0x0112] = 6
    modes: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "JPEG": [(rgb, {}), (rgb, {"progressive": True}), (rgb, {"exif": turned}), (rgb.convert("L"), {})],
        "PNG": [(rgb, {}), (rgb.convert("P"), {}), (rgb.convert("RGBA"), {}), (deep, {}), (rgb, moving)],
        "WEBP": [(rgb, {}), (rgb, {"lossless": True}), (rgb, moving)],
        "GIF": [(rgb, {}), (rgb, moving)],
        "TIFF": [(rgb, {}), (rgb, {"compression": "tiff_lzw"}), (rgb, {"big_tiff": True}), (rgb, moving)],
        "BMP": [(rgb, {}), (rgb.convert("P"), {}), (rgb.convert("1"), {})],
        "JPEG2000": [(rgb, {}), (rgb, {"no_jp2": True})],
        "AVIF": [(rgb, {})],
        "QOI": [(rgb, {})],
        "PPM": [(rgb, {}), (rgb.convert("L"), {})],
        "ICO": [(rgb, {"sizes": [(48, 48), (16, 16)]})],
    }
    modes["JPEG"].append((rgb.convert("CMYK"), {}))
    files = {name.lower(): [_written(image, name, how) for image, how in kinds] for name, kinds in modes.items()}
    box = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    files["heic"] = [box + files["avif"][0][32:], box.replace(b"heic", b"crx ")]
    files["svg"] = [b"<?xml version='1.0'?><!-- drawn --><svg width='9'><path d='M0 0'/></svg>"]
    files["others"] = [b"8BPS" + bytes(60), b"\xff\x0a" + bytes(60), b"\x76\x2f\x31\x01" + bytes(60)]
    return files


def _written(image: Image.Image, name: str, options: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    image.save(out, name, **options)
    return out.getvalue()


def good_videos() -> dict[str, list[bytes]]:
    """Of each container a second of moving noise."""
    files: dict[str, list[bytes]] = {}
    for name, kinds in VIDEOS.items():
        for container_format, codec, pixels in kinds:
            out = io.BytesIO()
            with av.open(out, "w", format=container_format) as container:
                stream = container.add_stream(codec, rate=25 if "mpeg" in container_format else 12)
                stream.width, stream.height, stream.pix_fmt = *SIZE, pixels
                for index in range(12):
                    frame = av.VideoFrame.from_image(scene(*SIZE, seed=index // 4))
                    container.mux(stream.encode(frame.reformat(format=pixels)))
                container.mux(stream.encode(None))
            files.setdefault(name, []).append(out.getvalue())
    return files


def work(folder: Path, kind: str, count: int, done: Any) -> None:
    """Runs in a process of its own, so that a crash of a decoder is a failed test and not the end of all tests."""
    av.logging.set_level(None)
    files = good_images() if kind == "image" else good_videos()
    first = (Read, (ReadConfig(),)), (ScoreImages, (ScoreImagesConfig(max_pixels=4_000_000),))
    split = (SplitVideos, (SplitVideosConfig(max_pixels=4_000_000, max_duration_s=60),))
    chain = Chain([*first, split, (Decide, (RULES,))], Limits(LIMIT_S, 1 << 31))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, contents in files.items():
        intact = folder / f"intact-{name}"
        intact.write_bytes(contents[0])
        expected = _reasons(chain, [intact])[str(intact)]
        assert (None in expected) == (sniff(contents[0])[1] not in UNSUPPORTED), f"{name}: {expected}"
        repair = fuzzing.repaired_png if name == "png" else None
        mutants = list(fuzzing.mutants(name, contents, count, repair=repair))
        seen: Counter[str | None] = Counter()
        for start in range(0, count, BATCH):
            done.value = f"{name}, mutants from {start} on".encode()
            part = mutants[start : start + BATCH]
            paths = [folder / f"{number:02d}.{name}" for number in range(len(part))]
            for path, (_, data) in zip(paths, part, strict=True):
                path.write_bytes(data)
            found = _reasons(chain, [*paths, intact])
            assert found.keys() == {str(path) for path in [*paths, intact]}, f"{done.value}: a file left no row"
            assert found[str(intact)] == expected, done.value
            seen.update(reason for path in paths for reason in found[str(path)])
        print(f"{name}: {dict(seen)}")
        assert len(seen) > 1, f"{name}: the damage tests nothing: {seen}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MAX_GROWTH_BYTES, f"memory grew by {grown >> 20} MiB"


def _reasons(chain: Chain, paths: list[Path]) -> dict[str, list[str | None]]:
    """By path the verdicts on its media; whatever is rejected says why."""
    uris = [str(path) for path in paths]
    listed = {"uri": uris, "size_bytes": [0] * len(uris), "source_caption": [None] * len(uris)}
    found: dict[str, list[str | None]] = {}
    for row in chain(pa.table(listed, schema=LISTED)).to_pylist():
        assert row["reject_reason"] is None or row["reject_detail"], row
        found.setdefault(row["uri"], []).append(row["reject_reason"])
    return found


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        pytest.param(kind, *number.values, marks=number.marks, id=f"{kind}-{number.id}")
        for kind, few, many in (("image", FEW_IMAGES, MANY_IMAGES), ("video", FEW_VIDEOS, MANY_VIDEOS))
        for number in fuzzing.count(many, few)
    ],
)
def test_damaged_files_are_accounted_for(ram_path, kind, count):
    context = multiprocessing.get_context("spawn")
    done = context.Array("c", 100)
    process = context.Process(target=work, args=(ram_path, kind, count, done))
    process.start()
    process.join(900)
    is_hanging = process.is_alive()
    process.kill()
    assert not is_hanging, f"a decoder hangs: {done.value}"
    assert process.exitcode == 0, f"a decoder ended its process: exit code {process.exitcode}, {done.value}"
