"""How full packs are, and how long a step waits for its packs: at the demo's sizes, at 5,120 and at 131,072 tokens.

The loader reads one step ahead while another step computes. Here a step sleeps instead: for as long as an H200 at half
of its bf16 peak takes for that many tokens of Emu3-8B (6 x 8.5e9 operations a token), divided by `--faster`, or for the
demo's model as long as two CPU cores take. `wait` is the share of the time that steps waited, `alone` what the loader
gives without a step. On a cold cache, with one worker and thread; `--root s3://...` reads from a store.
"""

import argparse
import hashlib
import tempfile
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from tokenmill import storage
from tokenmill.storage import cpu
from tokenmill.tokenizer.shards import TOKENS, write_parquet
from tokenmill.training.config import DataConfig, OptimizerConfig, TrainConfig
from tokenmill.training.data.loader import Loader
from tokenmill.training.job import TrainJob
from tokenmill.training.run.prepare import load_prepared, prepare

CODEBOOK = 32_768
GPU_TOKENS_PER_S = 0.5 * 989e12 / (6 * 8.5e9)
DEMO_TOKENS_PER_S = 8_000
WORDS = ("a", "the", "red", "green", "blue", "circle", "square", "above", "left", "right", "of", "with", "small")


@dataclass(frozen=True)
class Case:
    """Documents and how they are packed."""

    name: str
    data: DataConfig
    num_images: int
    image: tuple[int, int]
    num_clips: int
    clip: tuple[int, int, int]
    num_texts: int
    tokens_per_s: float


def cases(faster: float) -> list[Case]:
    on_gpu = GPU_TOKENS_PER_S * faster
    demo = DataConfig(context_tokens=512, pack_tokens=1024, batch_packs=2)
    first = DataConfig(context_tokens=5_120, pack_tokens=40_960, mixture={"text": 0.2, "image": 0.8})
    second = DataConfig(context_tokens=131_072, pack_tokens=131_072, mixture={"text": 0.2, "image": 0.3, "video": 0.5})
    return [
        Case("demo", demo, 4_000, (8, 8), 0, (1, 1, 1), 0, DEMO_TOKENS_PER_S),
        Case("5,120", first, 1_500, (64, 64), 0, (1, 1, 1), 400, on_gpu),
        Case("131,072", second, 2_000, (64, 64), 150, (30, 64, 64), 400, on_gpu),
    ]


def write_shards(case: Case, root: str) -> list[str]:
    """Random codes in 8 shards; captions of 8 to 200 words, texts of up to 6,000."""
    rng = np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(rng.choice(WORDS, count))

    def row(number: int, kind: str, grid: tuple[int, ...], fps: float | None, caption: str) -> dict:
        t, h, w = (1, *grid) if len(grid) == 2 else grid
        return {
            "media_id": hashlib.blake2b(f"{kind}{number}".encode(), digest_size=16).hexdigest(),
            "kind": kind,
            "codes": [] if kind == "text" else rng.integers(0, CODEBOOK, t * h * w, dtype=np.uint16),
            "grid_t": t,
            "grid_h": h,
            "grid_w": w,
            "fps": fps,
            "caption": caption,
            "fingerprint": "f" * 16,
            "run_id": "benchmark",
        }

    longest = 9 if case.name == "demo" else 200
    rows = [row(n, "image", case.image, None, words(rng.integers(8, longest))) for n in range(case.num_images)]
    rows += [row(n, "video", case.clip, 24.0, words(rng.integers(8, longest))) for n in range(case.num_clips)]
    rows += [row(n, "text", (0, 0), None, words(rng.integers(50, 6_000))) for n in range(case.num_texts)]
    order = rng.permutation(len(rows))
    uris = [storage.join(root, f"part-{shard}.parquet") for shard in range(8)]
    for shard, uri in enumerate(uris):
        table = pa.Table.from_pylist([rows[n] for n in order[shard::8]], schema=TOKENS)
        write_parquet(table, uri, 128)
    return uris


def measure(case: Case, root: str, seconds: float) -> tuple[float, float, float, float]:
    """Fill, tokens/s of the loader alone, share of the time that steps waited, seconds of a step."""
    config = TrainConfig(data=case.data, optimizer=OptimizerConfig(epochs=4), dtype="float32")
    job = TrainJob(config, write_shards(case, root), CODEBOOK, storage.join(root, "run"))
    fill = prepare(job)["fill"]
    ready = load_prepared(job)

    def loader() -> Loader:
        return Loader(ready.plan, ready.index, job.shard_uris, ready.layout, case.data.pack_tokens)

    step_s = case.data.pack_tokens * case.data.batch_packs / case.tokens_per_s
    num_tokens, start = 0, time.perf_counter()
    for _, packs in loader().steps(0):
        num_tokens += sum(pack.num_tokens for pack in packs)
        if time.perf_counter() - start > seconds / 3:
            break
    alone = num_tokens / (time.perf_counter() - start)

    waited, begun = 0.0, time.perf_counter()
    before = begun
    for number, _ in loader().steps(0):
        now = time.perf_counter()
        waited += now - before if number else 0.0  # the first pack waits for the first row group in any loader
        if not number:
            begun = now
        time.sleep(step_s)
        before = time.perf_counter()
        if before - begun > seconds:
            break
    return fill, alone, waited / (before - begun), step_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder or s3:// prefix; default: a temporary folder")
    parser.add_argument("--faster", type=float, default=4.0, help="than one H200 at half of its peak")
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    table = Table(title=f"Feeding, on {cpu.describe()}", title_justify="left")
    for column in ("case", "fill", "alone, tokens/s", "step", "wait"):
        table.add_column(column, justify="left" if column == "case" else "right")
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(arguments.faster):
            root = storage.join(arguments.root or folder, case.name.replace(",", ""))
            fill, alone, wait, step_s = measure(case, root, arguments.seconds)
            table.add_row(case.name, f"{fill:.2%}", f"{alone:,.0f}", f"{step_s:.2f} s", f"{wait:.2%}")
    Console().print(table)


if __name__ == "__main__":
    main()
