# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#     "py-data-juicer[distributed]", "av==13.1", "opencv-python-headless", "scenedetect", "imagededup",
#     "imageio-ffmpeg",
# ]
# ///
"""Data-Juicer on the files listed in LIST: python run_data_juicer.py images|videos LIST WORK [default|ray]

Images: shape, aspect and file size filters, image_deduplicator (perceptual hash), operators fused, one process a core.
Videos: video_split_by_scene_mapper (PySceneDetect's content detector; it encodes its clips anew), then
video_motion_score_filter (Farneback at 2 FPS). Writes WORK/result.json: kept rows, and the seconds of the
executor's run, without imports and configs.
"""

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    kind, listed, work = sys.argv[1], Path(sys.argv[2]).read_text().splitlines(), Path(sys.argv[3])
    executor = sys.argv[4] if len(sys.argv) > 4 else "default"
    work.mkdir(parents=True, exist_ok=True)
    rows, out = work / "in.jsonl", work / "out" / "out.jsonl"
    if kind == "images":
        process = [
            {"image_shape_filter": {"min_width": 64, "min_height": 64}},
            {"image_aspect_ratio_filter": {"min_ratio": 0.1, "max_ratio": 10}},
            {"image_size_filter": {"min_size": "0", "max_size": "1TB"}},
            {"image_deduplicator" if executor == "default" else "ray_image_deduplicator": {"method": "phash"}},
        ]
    else:
        import imageio_ffmpeg

        (work / "bin").mkdir(exist_ok=True)
        if not (work / "bin" / "ffmpeg").exists():
            (work / "bin" / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
        os.environ["PATH"] = f"{work / 'bin'}:{os.environ['PATH']}"
        process = [
            {"video_split_by_scene_mapper": {"detector": "ContentDetector", "threshold": 27.0, "min_scene_len": 15}},
            {"video_motion_score_filter": {"min_score": 0.0, "sampling_fps": 2, "size": 256}},
        ]
    token = "<__dj__image>" if kind == "images" else "<__dj__video>"
    rows.write_text("".join(json.dumps({"text": token, kind: [path]}) + "\n" for path in listed))
    config = {
        "project_name": "bench",
        "executor_type": executor,
        "dataset_path": str(rows),
        "export_path": str(out),
        "np": os.cpu_count(),
        "op_fusion": True,
        "use_cache": False,
        "open_monitor": False,
        "text_keys": "text",
        "process": process,
    }
    (work / "config.yaml").write_text(json.dumps(config))

    from data_juicer.config import init_configs
    from data_juicer.core import DefaultExecutor

    settings = init_configs(["--config", str(work / "config.yaml")])
    if executor == "ray":
        from data_juicer.core.executor.ray_executor import RayExecutor as DefaultExecutor
    runner = DefaultExecutor(settings)
    start = time.perf_counter()
    runner.run()
    work_s = time.perf_counter() - start
    written = [out] if out.is_file() else sorted(path for path in out.rglob("*") if path.is_file())
    kept = sum(1 for path in written for _ in path.open())
    (work / "result.json").write_text(json.dumps({"kept": kept, "work_s": work_s}))


if __name__ == "__main__":
    main()
