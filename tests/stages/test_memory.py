"""Files made to fill the memory are rejected, or read in pieces: what a worker holds does not grow with them."""

import io
import multiprocessing
import struct
import tarfile
import zlib
from collections.abc import Iterator
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tokenmill.stages.image.score import ScoreImages, ScoreImagesConfig
from tokenmill.stages.read.read import Read, ReadConfig
from tokenmill.stages.select.decide import Decide, DecideConfig
from tokenmill.stages.table.chain import Chain
from tokenmill.stages.table.columns import LISTED, UNPACK
from tokenmill.stages.table.limits import Limits
from tokenmill.stages.video.split import SplitVideos, SplitVideosConfig

pytestmark = pytest.mark.hostile

MIB = 1 << 20
LIMITS = Limits(timeout_s=60.0, memory_bytes=512 * MIB)
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


def huge_png(path: Path) -> None:
    """The largest square that most formats allow: 4 gigapixels."""
    path.write_bytes(png(65_535, 65_535))


def wide_png(path: Path) -> None:
    """Just below the limit of pixels, and above that of memory as soon as it is RGB and turned."""
    path.write_bytes(png(10_000, 9_999))


def huge_text(path: Path) -> None:
    """A small picture whose comment unpacks to 1 GB."""
    packer = zlib.compressobj(9)
    text = b"".join(packer.compress(bytes(MIB)) for _ in range(1024)) + packer.flush()
    path.write_bytes(png(64, 64, (b"zTXt", b"Comment\x00\x00" + text)))


def long_gif(path: Path) -> None:
    """100,000 frames."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 8, 8, 0) + b"\x02\x04\x84\x8f\xa9\x05\x00"
    header = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6)
    path.write_bytes(header + frame * 100_000 + b"\x3b")


def box(kind: bytes, *parts: bytes, full: int | None = None) -> bytes:
    body = (b"" if full is None else struct.pack(">I", full)) + b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def avif_grid(path: Path) -> None:
    """A grid of 16,384 x 16,384 pixels, whose 64 x 64 tiles are all the same few bytes."""
    side, tile_px = 64, 256
    stored = io.BytesIO()
    Image.new("RGB", (tile_px, tile_px)).save(stored, "AVIF")
    data = stored.getvalue()
    start = data.index(b"av1C") - 4
    av1c = data[start : start + struct.unpack(">I", data[start : start + 4])[0]]
    tile = data[data.index(b"mdat") + 4 :]
    grid = struct.pack(">BBBBHH", 0, 0, side - 1, side - 1, side * tile_px, side * tile_px)
    tiles = range(2, 2 + side * side)  # item 1 is the grid
    count = struct.pack(">H", 1 + len(tiles))
    properties = box(
        b"ipco",
        box(b"ispe", struct.pack(">II", tile_px, tile_px), full=0),
        box(b"ispe", struct.pack(">II", side * tile_px, side * tile_px), full=0),
        av1c,
        box(b"pixi", b"\3\x08\x08\x08", full=0),
    )
    kinds = [box(b"infe", struct.pack(">HH4s", 1, 0, b"grid"), b"\0", full=2 << 24)]
    kinds += [box(b"infe", struct.pack(">HH4s", number, 0, b"av01"), b"\0", full=2 << 24) for number in tiles]
    used = struct.pack(">IHBBB", 1 + len(tiles), 1, 2, 2, 4)
    used += b"".join(struct.pack(">HBBBB", number, 3, 1, 0x83, 4) for number in tiles)
    parts = struct.pack(f">HH{len(tiles)}H", 1, len(tiles), *tiles)

    def made(at: int) -> bytes:
        places = struct.pack(">HHHII", 1, 0, 1, at, len(grid))
        places += b"".join(struct.pack(">HHHII", number, 0, 1, at + len(grid), len(tile)) for number in tiles)
        meta = box(
            b"meta",
            box(b"hdlr", bytes(4), b"pict", bytes(13), full=0),
            box(b"pitm", struct.pack(">H", 1), full=0),
            box(b"iloc", b"\x44\0", count, places, full=0),
            box(b"iinf", count, *kinds, full=0),
            box(b"iref", box(b"dimg", parts), full=0),
            box(b"iprp", properties, box(b"ipma", used, full=0)),
            full=0,
        )
        return box(b"ftyp", b"avif\0\0\0\0avifmif1miaf") + meta

    path.write_bytes(made(len(made(0)) + 8) + box(b"mdat", grid, tile))


def endless_video(path: Path) -> None:
    """Ten minutes and, as live recordings do, no word on how long it is."""
    frames = [av.VideoFrame.from_ndarray(np.full((32, 32, 3), shade, np.uint8)) for shade in (60, 160)]
    with av.open(str(path), "w", options={"live": "1"}) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(10 * 60 * 25):
            frame = frames[number // 500 % 2]
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def many_claimed(path: Path) -> None:
    """Ten frames, of which the header says that there are a thousand million."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 10 * number, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    at = data.index(b"stts") + 12
    data[at : at + 4] = struct.pack(">I", 10**9)
    path.write_bytes(data)


def huge_frame(path: Path) -> None:
    """A video of one frame, a PNG of 256 megapixels."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 16_000, 16_000, "monob"
        packet = av.Packet(png(16_000, 16_000))
        packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1, 1)
        container.mux(packet)


def huge_member(path: Path) -> None:
    """A tar whose first member is said to have 10^12 bytes, and has a few."""
    info = tarfile.TarInfo("a.jpg")
    info.size = 10**12
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


def wide_cells(path: Path) -> None:
    """A parquet of 4 MB, whose 64 cells have 4 MB each, all the same."""
    picture = pa.array([png(8, 8) + bytes(4 * MIB)], pa.binary())
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), picture)
    pq.write_table(pa.table({"image": column}), path, compression="zstd", store_schema=False)


def huge_page(path: Path) -> None:
    """A parquet of a page that unpacks to 1 GB."""
    cells = pa.chunked_array([pa.array([bytes(MIB)] * 64, pa.large_binary())] * 16)
    how = {"compression": "zstd", "use_dictionary": False, "store_schema": False, "write_statistics": False}
    pq.write_table(pa.table({"image": cells}), path, data_page_size=1 << 31, write_batch_size=1 << 20, **how)


def long_line(path: Path) -> None:
    """A list of URLs, of which one line has 1 GB."""
    with path.open("wb") as file:
        file.write(b'{"url": "file:')
        file.truncate(1 << 30)
        file.seek(1 << 30)
        file.write(b'\n{"url": "not one"}\n')


def zip_inside(path: Path) -> None:
    """A tar with a zip that unpacks to much."""
    packed = zlib.compress(bytes(64 * MIB), 9)
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a.zip")
        info.size = len(packed) + 4
        tar.addfile(info, io.BytesIO(b"PK\3\4" + packed))


SMALL, FULL = 150 * MIB, 2 * LIMITS.memory_bytes  # what was set free before is not counted again
BOMBS = {
    "huge.png": (huge_png, {"too_many_pixels"}, SMALL),
    "wide.png": (wide_png, {"out_of_memory"}, FULL),
    "text.png": (huge_text, {"corrupt"}, SMALL),
    "long.gif": (long_gif, {"animated"}, SMALL),
    "grid.avif": (avif_grid, {"too_many_pixels"}, SMALL),
    "endless.mkv": (endless_video, {"kept", "too_long"}, SMALL),
    "claimed.mp4": (many_claimed, {"kept"}, SMALL),
    "frame.mov": (huge_frame, {"too_many_pixels"}, SMALL),
    "member.tar": (huge_member, {"corrupt_container", "unreadable"}, SMALL),
    "cells.parquet": (wide_cells, {"kept"}, FULL),
    "page.parquet": (huge_page, {"out_of_memory"}, FULL),
    "line.jsonl": (long_line, {"malformed_line", "bad_url"}, SMALL),
    "inside.tar": (zip_inside, {"unknown_format"}, SMALL),
}
CONTAINERS = {"tar": "webdataset", "parquet": "parquet", "jsonl": "urls"}


def worker(pipe: Connection, folder: Path) -> None:
    """Answers names of files in `folder` with the reasons of their rows, and by how many bytes the memory grew."""
    split = SplitVideosConfig(max_duration_s=6 * 60)
    stages = [(Read, (ReadConfig(),)), (ScoreImages, (ScoreImagesConfig(),)), (SplitVideos, (split,))]
    chain = Chain([*stages, (Decide, (RULES,))], LIMITS)
    schema = pa.schema([*LISTED, *UNPACK])
    while name := pipe.recv():
        container = CONTAINERS.get(name.rpartition(".")[2])
        row = {"uri": str(folder / name), "size_bytes": 0, "container": container}
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = peak_bytes()
        reasons = set()
        for part in chain.stream(pa.Table.from_pylist([row], schema=schema)):
            reasons |= {reason or "kept" for reason in part["reject_reason"].to_pylist()}
        pipe.send((reasons, peak_bytes() - before))


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


@pytest.fixture(scope="module")
def ask(tmp_path_factory) -> Iterator:
    """One process for all bombs: each is followed by others, which are not to suffer from it."""
    folder = tmp_path_factory.mktemp("bombs")
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=worker, args=(theirs, folder))
    process.start()
    theirs.close()

    def answer(name: str, make) -> tuple[set[str], int]:
        make(folder / name)
        ours.send(name)
        assert ours.poll(100), "it hangs"
        found = ours.recv()
        (folder / name).unlink()
        return found

    answer("small.png", lambda path: path.write_bytes(png(64, 64)))
    yield answer
    process.kill()
    process.join()


@pytest.mark.parametrize("name", BOMBS)
def test_memory_is_bounded(ask, name):
    make, expected, bound = BOMBS[name]
    reasons, grown = ask(name, make)
    assert reasons == expected
    assert grown < bound, f"memory grew by {grown >> 20} MiB"
