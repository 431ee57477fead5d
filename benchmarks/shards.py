"""Token shards: bytes per token, and million tokens written and read per second of one core.

    Parquet       ours: `list<uint16>`, byte-stream-split and zstd (tokenizer/shards.py), read as the loader reads
    tar           ours: `tokenmill export webdataset` (tokenizer/webdataset_shards.py), read as the loader reads
    tar, plain    the same tar, read by webdataset with its decoder
    webdataset    uint16 npy, json and txt in a tar written by webdataset's TarWriter, read by webdataset
    Emu3          one torch.save per sample of {name, images: int64, texts}, read by torch.load, as its code does

Seconds are of CPU time, all threads together, so a busy machine does not count; files stand in the page cache. Best of
three. Codes are random 15-bit numbers, and the built-in tokenizer's of drawn scenes (its codebook has 4,096 entries, so
these have 12 bits).
"""

import argparse
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset
from rich.console import Console
from rich.table import Table

from tokenmill import storage
from tokenmill.pipeline.demo.scenes import draw, split
from tokenmill.storage import cpu
from tokenmill.tokenizer import webdataset_shards
from tokenmill.tokenizer.shards import TOKENS, write_parquet
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer
from tokenmill.training.data.loader import RowGroups

ROW_GROUP_ROWS = 1024
TRIALS = 3

Rows = list[dict[str, Any]]


def rows_of(codes: list[np.ndarray], captions: list[str]) -> Rows:
    """Rows of the `tokens` table for images; `codes` uint16 (h, w)."""
    return [
        {
            "media_id": hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest(),
            "kind": "image",
            "codes": grid.ravel(),
            "grid_t": 1,
            "grid_h": grid.shape[0],
            "grid_w": grid.shape[1],
            "fps": None,
            "frames_trimmed": None,
            "caption": caption,
            "reject_reason": None,
            "fingerprint": "0123456789abcdef",
            "run_id": "benchmark",
        }
        for number, (grid, caption) in enumerate(zip(codes, captions, strict=True))
    ]


def random_rows(num: int, side: int) -> Rows:
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, 1 << 15, (side, side)).astype(np.uint16) for _ in range(num)]
    return rows_of(codes, [scene.caption for scene in split(0, num, 0)[0]])


def scene_rows(num: int, side: int) -> Rows:
    scenes = split(0, num, 0)[0]
    tokenizer = VisionTokenizer.load("builtin")
    rng = np.random.default_rng(0)
    codes = []
    for scene in scenes:
        frame = np.asarray(draw(scene, side * tokenizer.spatial_factor, rng).convert("RGB"))
        codes.append(tokenizer.encode_images(frame[None])[0].astype(np.uint16))
    return rows_of(codes, [scene.caption for scene in scenes])


def write_table(rows: pa.Table, folder: Path) -> None:
    write_parquet(rows, str(folder / "part.parquet"), ROW_GROUP_ROWS)


def write_tar(rows: pa.Table, folder: Path) -> None:
    codes = rows["codes"].combine_chunks()
    values, bounds = codes.values.to_numpy(), codes.offsets.to_numpy()
    plain = rows.select(webdataset_shards.ROW)
    samples = [webdataset_shards.Sample.of(row) for row in plain.to_pylist()]
    offsets = np.cumsum([0, *(sample.num_bytes for sample in samples)]).tolist()
    tar = webdataset_shards.tar_of(sample.files(values[bounds[i] : bounds[i + 1]]) for i, sample in enumerate(samples))
    uri = str(folder / "shard-000000.tar")
    places = [sample.place(offset) for sample, offset in zip(samples, offsets, strict=False)]
    members = pa.Table.from_pylist(
        [row | place for row, place in zip(plain.to_pylist(), places, strict=True)], webdataset_shards.MEMBERS
    )
    md5sum = hashlib.md5(tar, usedforsecurity=False).hexdigest()
    storage.write_bytes(uri, tar)
    webdataset_shards.write_members(members, uri, md5sum)


def write_webdataset(rows: Rows, folder: Path) -> None:
    with webdataset.TarWriter(str(folder / "shard-000000.tar")) as writer:
        for row in rows:
            document = {name: row[name] for name in ("kind", "fps", "fingerprint")}
            writer.write(
                {
                    "__key__": row["media_id"],
                    "codes.npy": row["codes"].reshape(1, row["grid_h"], row["grid_w"]),
                    "json": json.dumps(document).encode(),
                    "txt": row["caption"],
                }
            )


def write_emu3(rows: Rows, folder: Path) -> None:
    for row in rows:
        images = row["codes"].reshape(row["grid_h"], row["grid_w"]).astype(np.int64)
        name = row["media_id"]
        torch.save({"name": name, "images": images, "texts": row["caption"]}, folder / f"{name}.pth")


def read_ours(folder: Path, name: str) -> int:
    uri = str(folder / name)
    groups = RowGroups([uri], cache_bytes=1)
    count = 0
    filesystem, path = storage.filesystem(webdataset_shards.members_uri(uri) if webdataset_shards.is_tar(uri) else uri)
    with filesystem.open_input_file(path) as stream:
        num_groups = pq.ParquetFile(stream).num_row_groups
    for row_group in range(num_groups):
        table = groups.get(0, row_group)
        codes = table["codes"]
        for row in range(len(table)):
            count += len(codes[row].values.to_numpy())
    return count


def read_webdataset(folder: Path) -> int:
    samples = webdataset.WebDataset(str(folder / "shard-000000.tar"), shardshuffle=False).decode()
    return sum(sample["codes.npy"].size for sample in samples)


def read_emu3(folder: Path) -> int:
    return sum(torch.load(path, weights_only=False)["images"].size for path in sorted(folder.glob("*.pth")))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, best of TRIALS, and the result."""
    best = float("inf")
    for _ in range(TRIALS):
        start = time.process_time()
        result = call()
        best = min(best, time.process_time() - start)
    return best, result


def measure(made: Table, what: str, rows: Rows) -> None:
    num_tokens = sum(len(row["codes"]) for row in rows)
    table = pa.Table.from_pylist(rows, schema=TOKENS)
    formats: list[tuple[str, Callable[[Path], None] | None, Callable[[Path], int]]] = [
        ("Parquet", lambda folder: write_table(table, folder), lambda folder: read_ours(folder, "part.parquet")),
        ("tar", lambda folder: write_tar(table, folder), lambda folder: read_ours(folder, "shard-000000.tar")),
        ("tar, plain", None, read_webdataset),
        ("webdataset", lambda folder: write_webdataset(rows, folder), read_webdataset),
        ("Emu3", lambda folder: write_emu3(rows, folder), read_emu3),
    ]
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "shards"
        for name, write, read in formats:
            write_s = None
            if write is not None:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                write_s, _ = timed(lambda write=write: write(folder))
            read_s, found = timed(lambda read=read: read(folder))
            assert found == num_tokens, (name, found, num_tokens)
            size = sum(path.stat().st_size for path in folder.iterdir())
            made.add_row(
                what,
                name,
                f"{size / num_tokens:.2f}",
                "" if write_s is None else f"{num_tokens / write_s / 1e6:.1f}",
                f"{num_tokens / read_s / 1e6:.1f}",
            )
    made.add_section()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2_000, help="samples of random codes")
    parser.add_argument("--scenes", type=int, default=200, help="drawn scenes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    made = Table("codes", "form", title="Token shards")
    for name in ("bytes/token", "write M/s", "read M/s"):
        made.add_column(name, justify="right")
    measure(made, f"random, {options.samples} x 90x90", random_rows(options.samples, 90))
    measure(made, f"random, {4 * options.samples} x 8x8", random_rows(4 * options.samples, 8))
    measure(made, f"scenes, {options.scenes} x 32x32", scene_rows(options.scenes, 32))
    console = Console(width=100)
    console.print(cpu.describe(), highlight=False)
    console.print(made)


if __name__ == "__main__":
    main()
