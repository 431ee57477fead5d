"""Images/s and videos/s of tokenmill, Data-Juicer and NeMo Curator on the same files, one after the other.

    whole     from the start of the command to its end
    steady    without start-up: tokenmill from its first result to its last commit; Data-Juicer its executor's run;
              NeMo Curator from the first task's start to the last one's end

Each peer is a script under benchmarks/peers/ that uv runs in an environment of its own (several GB, made at the first
run, before any clock starts). Peers decode, filter by shape and aspect, and hash (images); find scenes and motion
(videos). tokenmill computes all its cheap scores, and writes and commits its tables.

Images are photos of 256 to 1,024 px; videos are real ones, each many times with other bytes and the same pictures.
Goal: three times the best peer's steady state, and ahead of each with start-up.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import av
import corpus
import numpy as np

from tokenmill.storage import cpu

HERE = Path(__file__).resolve().parent
PEERS = {"Data-Juicer": ("run_data_juicer.py", []), "NeMo Curator": ("run_nemo_curator.py", [])}
FUSED = {"NeMo Curator, fused": ("run_nemo_curator.py", ["fused"])}
RAY_MODE = {"Data-Juicer, Ray": ("run_data_juicer.py", ["ray"])}


def images(folder: Path, source: Path, num: int) -> list[Path]:
    """JPEGs with a longer edge of 256 to 1,024 px, made once."""
    paths = [folder / f"{index // 1000:03d}" / f"{index:06d}.jpg" for index in range(num)]
    if all(path.exists() for path in paths):
        return paths
    sizes = np.random.default_rng(1).uniform(256, 1024, num)
    found = corpus.photos(source)
    for index, (path, side) in enumerate(zip(paths, sizes.tolist(), strict=True)):
        path.parent.mkdir(parents=True, exist_ok=True)
        photo = found[index % len(found)]
        path.write_bytes(next(corpus.variants([photo], 1, side**2 * 0.7 / 1e6, seed=index)))
    return paths


def videos(folder: Path, source: Path, copies: int) -> list[Path]:
    """Real videos in MP4 of at most 40 s, each `copies` times with another comment in its header; made once."""
    originals = []
    for path in sorted(source.glob("*.mp4")):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if stream.codec_context.name == "h264" and (container.duration or 0) / av.time_base <= 40:
                originals.append(path)
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for copy in range(copies):
        for original in originals:
            path = folder / f"{original.stem}-{copy}.mp4"
            paths.append(path)
            if path.exists():
                continue
            with av.open(str(original)) as source_file, av.open(str(path), "w") as target:
                target.metadata["comment"] = str(copy)
                stream = source_file.streams.video[0]
                written = target.add_stream_from_template(stream)
                for packet in source_file.demux(stream):
                    if packet.dts is not None:
                        packet.stream = written
                        target.mux(packet)
    return paths


def ours(kind: str, paths: list[Path], work: Path) -> tuple[float, float, int]:
    """Seconds of `tokenmill curate` with the cheap scores, rows per second, and kept media."""
    listed = work / "listed"
    for folder in (listed, work / "root"):
        shutil.rmtree(folder, ignore_errors=True)
    listed.mkdir(parents=True)
    for path in paths:
        (listed / path.name).hardlink_to(path)
    config = {
        "root": str(work / "root"),
        "sources": [{"uri": str(listed)}],
        "curate": {
            "decide": {
                "image_rules": {"large": "min(width_px, height_px) >= 64", "long": "aspect <= 10"},
                "video_rules": {"moves": "flow >= 0 or flicker >= 0"},
            },
            "duplicates": {"near_radius": 0},
            "resources": {"num_cpus": 0.8, "batch_rows": 128 if kind == "images" else 2},
        },
    }
    (work / "config.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "tokenmill", "curate", str(work / "config.yaml")]
    start = time.perf_counter()
    with (work / "log.txt").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, cwd=HERE.parent)
    seconds = time.perf_counter() - start
    command[3:4] = ["status", "--json"]
    status = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=HERE.parent).stdout)
    rate = status["last_run"]["phases"][0]["rows_per_s"]
    return seconds, rate, sum(entry["kept"] for entry in status["accounts"] if entry["phase"] == "curate")


def peer(script: str, extra: list[str], kind: str, paths: list[Path], work: Path) -> tuple[float, float, int]:
    """Seconds of a peer's script, files per second while it works, and kept rows."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "list.txt").write_text("\n".join(map(str, paths)))
    uv, path = [sys.executable, "-m", "uv"], str(HERE / "peers" / script)
    with (work / "log.txt").open("w") as log:
        subprocess.run([*uv, "sync", "--quiet", "--script", path], check=True, stdout=log, stderr=log)
        # Run directly: Ray would carry the environment of `uv run` along.
        find = [*uv, "python", "find", "--script", path]
        python = subprocess.run(find, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        command = [python, path, kind, str(work / "list.txt"), str(work / "run"), *extra]
        start = time.perf_counter()
        mark = f"PEERS_RUN={uuid.uuid4().hex}"
        environment = os.environ | dict([mark.split("=")])
        done = subprocess.run(command, stdout=log, stderr=log, check=False, env=environment)
    seconds = time.perf_counter() - start
    end_left_behind(mark)
    if done.returncode:
        raise SystemExit(f"{script} failed; see {work / 'log.txt'}")
    result = json.loads((work / "run" / "result.json").read_text())
    return seconds, len(paths) / result["work_s"], result["kept"]


def end_left_behind(mark: str) -> None:
    """End the processes that carry `mark` in their environment: Xenna leaves its workers running."""
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in environ.read_bytes().split(b"\0"):
                os.kill(int(environ.parent.name), signal.SIGKILL)
        except OSError:
            continue


def compare(kind: str, paths: list[Path], work: Path, with_ray_mode: bool) -> None:
    """Run everybody on the files, and print a line each."""
    runs = {"tokenmill": lambda: ours(kind, paths, work / "ours")}
    others = PEERS | (FUSED if kind == "images" else {}) | (RAY_MODE if with_ray_mode else {})
    for name, (script, extra) in others.items():
        runs[name] = lambda script=script, extra=extra: peer(script, extra, kind, paths, work / script)
    print(f"{len(paths)} {kind}; {cpu.describe()}")
    steady = {}
    for name, run in runs.items():
        seconds, steady[name], kept = run()
        print(
            f"{name:20} steady {steady[name]:8.2f} {kind}/s   whole {len(paths) / seconds:8.2f} {kind}/s "
            f"in {seconds:6.1f} s   {kept} rows",
            flush=True,
        )
    for name in others:
        print(f"tokenmill: {steady['tokenmill'] / steady[name]:.1f} times {name}, steady")


def main() -> None:
    parser = corpus.arguments(__doc__ or "", num=10_000)
    parser.add_argument("--videos", type=Path, default=Path("../shared/data/videos"), help="a folder of real videos")
    parser.add_argument("--copies", type=int, default=12, help="how many times each video")
    parser.add_argument("--ray-mode", action="store_true", help="Data-Juicer's Ray mode too (slow)")
    parser.add_argument("--kind", choices=["images", "videos", "both"], default="both")
    options = parser.parse_args()
    work = options.work.resolve()
    if options.kind != "videos":
        compare("images", images(work / "mixed", options.photos, options.num), work / "peers", options.ray_mode)
    if options.kind != "images":
        compare("videos", videos(work / "videos", options.videos, options.copies), work / "peers", options.ray_mode)


if __name__ == "__main__":
    main()
