"""Cheap image scores in images/s per core, beside two ceilings on the same files in the same run.

    full decode   libjpeg-turbo decodes every pixel, and nothing else happens
    bare loop     our stages on bytes from disk, in one process, without Ray
    pipeline      `tokenmill curate` on the same files: Ray, shards, commits; whole process, and steady state

The steady state is the slope between two corpora of different length, so that starting Ray does not count.
Goals: on photographs of 2 megapixels or more the bare loop is faster than the full decode; the pipeline keeps at least
85 % of the bare loop.
"""

import io
import os
import shutil
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import corpus
import pyarrow as pa
from PIL import Image
from rich.console import Console

from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.stages.image.score import ScoreImages, ScoreImagesConfig
from tokenmill.stages.read.read import Read, ReadConfig
from tokenmill.stages.select.decide import Decide, DecideConfig
from tokenmill.stages.table.chain import Chain
from tokenmill.stages.table.columns import LISTED
from tokenmill.storage import cpu

BATCH = 32
RULES = {"large_enough": "min(width_px, height_px) >= 64", "sharp": "sharpness >= 1", "in_colour": "chroma >= 0"}


def full_decode(paths: list[Path]) -> float:
    start = time.perf_counter()
    for path in paths:
        Image.open(io.BytesIO(path.read_bytes())).load()
    return len(paths) / (time.perf_counter() - start)


def bare_loop(paths: list[Path]) -> float:
    decide = DecideConfig(image_rules=RULES)
    chain = Chain([(Read, (ReadConfig(),)), (ScoreImages, (ScoreImagesConfig(),)), (Decide, (decide,))])
    uris = [str(path.resolve()) for path in paths]
    start = time.perf_counter()
    for first in range(0, len(uris), BATCH):
        batch = uris[first : first + BATCH]
        rows = {"uri": batch, "size_bytes": [0] * len(batch), "source_caption": [None] * len(batch)}
        chain(pa.table(rows, schema=LISTED))
    return len(paths) / (time.perf_counter() - start)


def pipeline(paths: list[Path], work: Path, workers: int) -> float:
    """Seconds of the whole command in this process."""
    folder, root = work / "listed", work / "root"
    for path in (folder, root):
        shutil.rmtree(path, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in paths:
        os.link(path, folder / path.name)
    config = RunConfig.model_validate(
        {
            "root": str(root),
            "sources": [{"uri": str(folder)}],
            "curate": {"decide": {"image_rules": RULES}, "resources": {"workers": workers, "num_cpus": 0.75}},
        }
    )
    start = time.perf_counter()
    run = run_phases(config, ("curate",), "benchmark", Console(quiet=True))
    seconds = time.perf_counter() - start
    assert run.reports[0].num_seen == len(paths), run.reports[0].as_dict()
    return seconds


def main() -> None:
    parser = corpus.arguments(__doc__ or "", num=2000)
    parser.add_argument("--megapixels", type=float, default=2.0)
    parser.add_argument("--workers", type=int, default=1, help="Ray workers; 1 compares with one bare loop")
    options = parser.parse_args()
    folder = options.work / f"{options.megapixels:g}mp"
    paths = corpus.write(folder, options.photos, options.num, options.megapixels)
    sample = paths[: max(64, len(paths) // 4)]
    full_decode(sample[:16])
    rounds = [(full_decode(sample), bare_loop(sample)) for _ in range(3)]
    decode, bare = (sorted(column)[1] for column in zip(*rounds, strict=True))
    short, whole = pipeline(sample, options.work, options.workers), pipeline(paths, options.work, options.workers)
    steady = (len(paths) - len(sample)) / (whole - short)
    print(cpu.describe())
    print(f"{options.num} JPEGs of about {options.megapixels:g} megapixels, {options.workers} worker(s)")
    print(f"full decode            {decode:8.1f} images/s per core")
    print(f"bare loop, all scores  {bare:8.1f} images/s per core   {bare / decode:.2f} x the full decode")
    print(
        f"pipeline, steady       {steady:8.1f} images/s            {steady / bare / options.workers:.2f} of bare loops"
    )
    print(f"pipeline, whole        {len(paths) / whole:8.1f} images/s            {whole:.1f} s with start-up")


if __name__ == "__main__":
    main()
