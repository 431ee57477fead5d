"""Scenes, flow and scores of videos in frames/s per core, beside bare sequential decoding of the same files.

    bare decoding   PyAV decodes every frame of the video stream, on one thread, and nothing else happens
    curate          our stage: cuts and fades, flow at 2 FPS, scores, clips

Goal: at least half of bare decoding. Both run in one process, in turns, and the middle of three rounds counts.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import time
from pathlib import Path

import av
import pyarrow as pa

from tokenmill.stages.read.read import Read, ReadConfig
from tokenmill.stages.select.decide import Decide, DecideConfig
from tokenmill.stages.table.chain import Chain
from tokenmill.stages.table.columns import LISTED
from tokenmill.stages.video.split import SplitVideos, SplitVideosConfig
from tokenmill.storage import cpu

SUFFIXES = {".mp4", ".webm", ".mkv", ".avi", ".mov"}


def bare(paths: list[Path]) -> tuple[float, int]:
    start, frames = time.perf_counter(), 0
    for path in paths:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            frames += sum(1 for _ in container.decode(stream))
    return time.perf_counter() - start, frames


def curate(paths: list[Path]) -> tuple[float, int, int]:
    config = DecideConfig(video_rules={"any": "width_px >= 1"})
    chain = Chain([(Read, (ReadConfig(),)), (SplitVideos, (SplitVideosConfig(),)), (Decide, (config,))])
    uris = [str(path.resolve()) for path in paths]
    listed = {"uri": uris, "size_bytes": [0] * len(uris), "source_caption": [None] * len(uris)}
    start = time.perf_counter()
    content = pa.table(listed, schema=LISTED)
    rows = chain(content)
    return time.perf_counter() - start, sum(rows["num_frames"].drop_null().to_pylist()), rows.num_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=Path, default=Path("../shared/data/videos"), help="a folder of real videos")
    options = parser.parse_args()
    paths = [path for path in sorted(options.videos.rglob("*")) if path.suffix in SUFFIXES]
    if not paths:
        raise SystemExit(f"{options.videos}: no videos; give --videos FOLDER")
    rounds = [(bare(paths), curate(paths)) for _ in range(3)]
    frames, clips = rounds[0][0][1], rounds[0][1][2]
    plain = sorted(round_[0][0] for round_ in rounds)[1]
    ours = sorted(round_[1][0] for round_ in rounds)[1]
    assert rounds[0][1][1] >= 0.98 * frames, "frames are missing"
    print(cpu.describe())
    print(f"{len(paths)} videos, {frames} frames, {clips} clips")
    print(f"bare decoding   {frames / plain:8.0f} frames/s per core")
    print(f"curate          {frames / ours:8.0f} frames/s per core   {plain / ours:.2f} of bare decoding")


if __name__ == "__main__":
    main()
