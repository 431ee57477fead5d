"""Twelve evenly spaced frames of each real video as RGB, in CPU milliseconds of the process, all its threads together.

    sequential   PyAV decodes from the start until the last of them is found
    seeking      `Video.frame_at` for one after another
    decord       decord2 alone; right where each picture is the sequential one, bit by bit
    frames_at    ours, which chooses a reader by what the container says

Each on one thread, in turns; the best of the rounds counts, which are more for short files. Times are the first
frame's, the last one's and ten between, or with `--middles` the middles of twelve equal parts. Goals: at least as fast
as the better of sequential and decord (where right) on 90 % of the files, and 1.5 times as fast as sequential in all.
Repetitions differ by up to 5 %: the share is printed with that allowance, and without.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import time
from collections.abc import Callable, Iterable
from math import inf
from pathlib import Path

import decord
import numpy as np

from tokenmill.stages.table.rows import RowError
from tokenmill.stages.video.decode import TICK_S, BrokenVideoError, Video
from tokenmill.stages.video.frames import frames_at, reader
from tokenmill.storage import cpu

MAX_PIXELS = 100_000_000
NOISE = 0.05
SHORT_MS = 150.0  # files are repeated for at least so long
Pictures = list[np.ndarray]


def starts(path: Path) -> list[float]:
    """Times of all frames up to the end or the first damage; none when the file is unreadable."""
    found = []
    try:
        with Video(str(path), MAX_PIXELS) as video:
            for time_s, _ in video.frames():
                found.append(time_s)
    except (RowError, BrokenVideoError):
        pass
    return found


def sequential(path: Path, times_s: list[float]) -> Pictures:
    found, held = [], None
    with Video(str(path), MAX_PIXELS) as video:

        def take() -> None:
            rgb = held.to_ndarray(format="rgb24", threads=1)
            found.append(np.rot90(rgb, video.quarter_turns))

        try:
            for time_s, frame in video.frames():
                while len(found) < len(times_s) and time_s > times_s[len(found)] + TICK_S:
                    take()
                if len(found) == len(times_s):
                    break
                held = frame
        except BrokenVideoError:
            pass
        while len(found) < len(times_s):
            take()
    return found


def seeking(path: Path, times_s: list[float]) -> Pictures:
    with Video(str(path), MAX_PIXELS) as video:
        return [video.upright(video.frame_at(time_s)) for time_s in times_s]


def by_decord(path: Path, times_s: list[float]) -> Pictures:
    file = decord.VideoReader(str(path), num_threads=1)
    starts_s = file.get_frame_timestamp(np.arange(len(file)))[:, 0].astype(float)
    limits_s = np.array(times_s) + starts_s[0] + 1e-4  # its times are of single precision
    return list(file.get_batch(np.maximum(np.searchsorted(starts_s, limits_s, "right") - 1, 0)).asnumpy())


def ours(path: Path, times_s: list[float]) -> Pictures:
    with Video(str(path), MAX_PIXELS) as video:
        return [video.upright(frame) for frame in frames_at(video, times_s)]


def timed(read: Callable[[Path, list[float]], Pictures], path: Path, times_s: list[float]) -> tuple[float, Pictures]:
    start = time.process_time()
    try:
        pictures = read(path, times_s)
    except Exception:  # decord raises its own, RuntimeError and AssertionError
        return inf, []
    return (time.process_time() - start) * 1000, pictures


def same(pictures: Pictures, others: Pictures) -> bool:
    return len(pictures) == len(others) and all(map(np.array_equal, pictures, others))


def share(ratios: Iterable[float], least: float) -> str:
    reached = [ratio >= least for ratio in ratios]
    return f"{sum(reached)} of {len(reached)} ({sum(reached) / len(reached):.0%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    folders = [Path("../shared/data/videos"), Path("../shared/data/bad/videos")]
    parser.add_argument("--videos", type=Path, nargs="+", default=folders, help="folders of real videos")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions")
    parser.add_argument("--num", type=int, default=12, help="frames")
    parser.add_argument("--middles", action="store_true", help="the middles of equal parts, not the first to the last")
    options = parser.parse_args()
    decord.logging.set_level(decord.logging.QUIET)
    readers = (sequential, seeking, by_decord, ours)
    print(cpu.describe())
    print(f"{'':34} {'frames':>6} sequential seeking  decord frames_at   of better, reader")
    rows, ratios = [], []
    for path in sorted(path for folder in options.videos for path in folder.rglob("*") if path.is_file()):
        starts_s = starts(path)
        if not starts_s:
            continue
        parts = (np.arange(options.num) + 0.5) / options.num if options.middles else np.linspace(0, 1, options.num)
        times_s = (parts * starts_s[-1]).tolist()
        truth, seeked, theirs, chosen = (timed(read, path, times_s)[1] for read in readers)
        assert same(chosen, truth) and same(seeked, truth), f"{path}: wrong frames"
        is_right = same(theirs, truth)
        del truth, seeked, theirs, chosen
        row = [inf] * len(readers)
        num_rounds, spent_ms = 0, 0.0
        while num_rounds < options.rounds or (spent_ms < SHORT_MS and num_rounds < 10 * options.rounds):
            for i in np.roll(range(len(readers)), num_rounds).tolist():  # none is always first
                row[i] = min(row[i], timed(readers[i], path, times_s)[0])
            num_rounds, spent_ms = num_rounds + 1, spent_ms + row[0]
        ratios.append(min(row[0], row[2] if is_right else inf) / row[3])
        rows.append(row)
        with Video(str(path), MAX_PIXELS) as video:
            first = reader(video, times_s[-1])
        print(
            f"{path.name[-34:]:34} {len(starts_s):6} {row[0]:10.1f} {row[1]:7.1f} {row[2]:7.1f} {row[3]:9.1f}   "
            f"{ratios[-1]:9.2f}, {first}{'' if is_right else '; decord is wrong'}",
            flush=True,
        )
    if not rows:
        raise SystemExit(f"{options.videos}: no videos; give --videos FOLDER")
    total = [sum(row[i] for row in rows if row[2] < inf) for i in range(4)]
    print(f"in all {total[0]:.0f}, {total[1]:.0f}, {total[2]:.0f}, {total[3]:.0f} ms (but of what decord cannot open)")
    print(f"frames_at is {total[0] / total[3]:.2f} times as fast as sequential, {total[2] / total[3]:.2f} as decord")
    print(f"as fast as the better of both: {share(ratios, 1 - NOISE)}; without allowance {share(ratios, 1)}")


if __name__ == "__main__":
    main()
