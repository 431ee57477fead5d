# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = ["nemo-curator", "opencv-python-headless", "av", "imagehash", "scenedetect"]
# ///
"""NeMo Curator on the files listed in LIST: python run_nemo_curator.py images|videos LIST WORK [fused]

Its engine (Xenna) runs stages written here, because its own image reader and scene detector need a GPU. Images: decode
with PIL, size, aspect, 64-bit perceptual hash (imagehash), 32 files a task, in two stages or fused into one. Videos:
PySceneDetect's content detector, Farneback's flow at 2 FPS on a shorter edge of 256 px. Writes WORK/result.json: kept
rows, and the seconds from the first task's start to the last one's end.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("RAY_MAX_LIMIT_FROM_API_SERVER", "40000")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

from nemo_curator.backends.xenna import XennaExecutor
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import EmptyTask, FileGroupTask

CPUS = 0.9  # of a core: the partitioner stands beside


@dataclass
class ListFiles(ProcessingStage[EmptyTask, FileGroupTask]):
    paths: list
    group: int
    name: str = "list_files"

    def __post_init__(self):
        self.resources = Resources(cpus=0.1)

    def inputs(self):
        return [], []

    def outputs(self):
        return ["data"], []

    def num_workers(self):
        return 1

    def process(self, task):
        parts = [self.paths[first : first + self.group] for first in range(0, len(self.paths), self.group)]
        return [FileGroupTask(dataset_name="bench", data=part) for part in parts]


class Score(ProcessingStage[FileGroupTask, FileGroupTask]):
    def __init__(self):
        self.resources = Resources(cpus=CPUS)

    def inputs(self):
        return ["data"], []

    def outputs(self):
        return ["data"], []

    def process(self, task):
        start = time.time()
        task._metadata["rows"] = [row for path in task.data for row in self.rows(path)]
        task._metadata["span"] = (start, time.time())
        return task


class ScoreImages(Score):
    """Everything in one stage: the least that the engine can cost."""

    name = "score_images"

    def rows(self, path):
        import imagehash
        from PIL import Image

        with Image.open(path) as image:
            image.load()
            width, height = image.size
            return [{"path": path, "width": width, "height": height, "phash": str(imagehash.phash(image))}]


class ReadImages(Score):
    """The first of two stages, as its own image pipelines are built: pixels travel to the next."""

    name = "read_images"

    def __init__(self):
        self.resources = Resources(cpus=CPUS / 2)

    def rows(self, path):
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            return [{"path": path, "pixels": np.asarray(image.convert("RGB"))}]


class HashImages(ReadImages):
    """The second of the two."""

    name = "hash_images"

    def process(self, task):
        import imagehash
        from PIL import Image

        for row in task._metadata["rows"]:
            pixels = row.pop("pixels")
            row.update(height=pixels.shape[0], width=pixels.shape[1])
            row["phash"] = str(imagehash.phash(Image.fromarray(pixels)))
        task._metadata["span"] = (task._metadata["span"][0], time.time())
        return task


class ScoreVideos(Score):
    name = "score_videos"

    def rows(self, path):
        import av
        import cv2
        import numpy as np
        from scenedetect import ContentDetector, detect

        cv2.setNumThreads(1)
        scenes = detect(path, ContentDetector())
        flows, before, next_s = [], None, 0.0
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if frame.time is None or frame.time < next_s:
                    continue
                next_s += 0.5
                scale = 256 / min(frame.width, frame.height)
                size = (round(frame.width * scale), round(frame.height * scale))
                grey = cv2.resize(frame.to_ndarray(format="gray"), size)
                if before is not None:
                    flow = cv2.calcOpticalFlowFarneback(before, grey, None, 0.5, 3, 15, 3, 5, 1.2, 0)
                    flows.append(float(np.linalg.norm(flow, axis=-1).mean()))
                before = grey
        mean = float(np.mean(flows)) if flows else None
        return [{"path": path, "scene": number, "flow": mean} for number in range(max(1, len(scenes)))]


def main() -> None:
    kind, listed, work = sys.argv[1], Path(sys.argv[2]).read_text().splitlines(), Path(sys.argv[3])
    work.mkdir(parents=True, exist_ok=True)
    is_fused = sys.argv[4:] == ["fused"]
    images = [ListFiles(listed, 32), *([ScoreImages()] if is_fused else [ReadImages(), HashImages()])]
    stages = images if kind == "images" else [ListFiles(listed, 1), ScoreVideos()]
    pipeline = Pipeline(name="bench", stages=stages)
    tasks = pipeline.run(XennaExecutor(config={"execution_mode": "streaming", "logging_interval": 60}))
    rows = [row for task in tasks for row in task._metadata["rows"]]
    if kind == "images":
        rows = list({row["phash"]: row for row in rows}.values())
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    starts, ends = zip(*(task._metadata["span"] for task in tasks), strict=True)
    (work / "result.json").write_text(json.dumps({"kept": len(rows), "work_s": max(ends) - min(starts)}))


if __name__ == "__main__":
    main()
