"""Files made to fill the memory are rejected, or read in pieces: what a worker holds does not grow with them."""

import multiprocessing
import resource
import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest

from tokenmill.stages.image.score import ScoreImages, ScoreImagesConfig
from tokenmill.stages.read.read import Read, ReadConfig
from tokenmill.stages.select.decide import Decide, DecideConfig
from tokenmill.stages.table.chain import Chain
from tokenmill.stages.table.columns import LISTED
from tokenmill.stages.video.split import SplitVideos, SplitVideosConfig

MAX_GROWTH_BYTES = 150 << 20
RULES = DecideConfig(image_rules={"sized": "width_px >= 8"}, video_rules={"sized": "width_px >= 8"})


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A 1-bit PNG, all black, with further chunks before its pixels."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    out = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")):
        out += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return out


def huge_picture(folder: Path) -> Path:
    """800 megapixels, 2.4 GB as RGB, in a file of 100 KB."""
    path = folder / "huge.png"
    path.write_bytes(png(40_000, 20_000))
    return path


def huge_text(folder: Path) -> Path:
    """A small picture whose comment unpacks to 1 GB."""
    packer = zlib.compressobj(9)
    zeros = bytes(1 << 20)
    text = b"".join(packer.compress(zeros) for _ in range(1024)) + packer.flush()
    path = folder / "text.png"
    path.write_bytes(png(64, 64, (b"zTXt", b"Comment\x00\x00" + text)))
    return path


def endless_video(folder: Path) -> Path:
    """Half an hour and, as live recordings do, no word on how long it is."""
    path = folder / "endless.mkv"
    frames = [av.VideoFrame.from_ndarray(np.full((32, 32, 3), shade, np.uint8)) for shade in (60, 160)]
    with av.open(str(path), "w", options={"live": "1"}) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(30 * 60 * 25):
            frame = frames[number // 500 % 2]
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def work(path: Path, expected: list[str]) -> None:
    """In a process of its own, whose peak is that of this file."""
    split = SplitVideosConfig(max_duration_s=20 * 60)
    chain = Chain(
        [
            (Read, (ReadConfig(),)),
            (ScoreImages, (ScoreImagesConfig(),)),
            (SplitVideos, (split,)),
            (Decide, (RULES,)),
        ]
    )
    small = path.parent / "small.png"
    small.write_bytes(png(64, 64))

    def rows(uri: Path) -> list[dict]:
        table = {"uri": [str(uri)], "size_bytes": [0], "source_caption": [None]}
        return chain(pa.table(table, schema=LISTED)).to_pylist()

    rows(small)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reasons = sorted({row["reject_reason"] or "kept" for row in rows(path)})
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert reasons == expected, reasons
    assert grown < MAX_GROWTH_BYTES, f"memory grew by {grown >> 20} MiB"


@pytest.mark.parametrize(
    ("make", "expected"),
    [(huge_picture, ["too_many_pixels"]), (huge_text, ["corrupt"]), (endless_video, ["kept", "too_long"])],
)
def test_memory_is_bounded(tmp_path, make, expected):
    path = make(tmp_path)
    process = multiprocessing.get_context("spawn").Process(target=work, args=(path, expected))
    process.start()
    process.join(300)
    is_hanging = process.is_alive()
    process.kill()
    assert not is_hanging
    assert process.exitcode == 0
