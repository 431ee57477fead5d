"""One worker of `tokenmill tokenizer train`: kept media in memory, then tokenizer/vision/training/loop.py."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tokenmill.pipeline.phases import TokenizerResources
from tokenmill.stages import LoadFrames, LoadFramesConfig
from tokenmill.storage.identity import fingerprint_of
from tokenmill.tokenizer.vision.training.config import VisionTrainConfig

_ROWS_AT_ONCE = 64
_MIN_FRAMES = 4


@dataclass(frozen=True)
class Job:
    """What a worker needs to know."""

    config: VisionTrainConfig
    resources: TokenizerResources
    load: LoadFramesConfig
    media: pa.Table
    out: str
    fetched: str

    @property
    def data_id(self) -> str:
        """What the training sees."""
        return fingerprint_of(self.load, self.media["media_id"].to_pylist())


def train_worker(arguments: dict[str, Any]) -> None:
    """Train on this worker's share, as `arguments["job"]` says."""
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    from tokenmill.tokenizer.vision.training.loop import train
    from tokenmill.tokenizer.vision.training.parallel import Workers

    job: Job = arguments["job"]
    context = get_context()
    torch.set_num_threads(job.resources.threads or max(1, round(job.resources.cpus_per_worker)))
    images, clips = load_media(job)
    train(
        job.config,
        images,
        clips,
        job.out,
        data_id=job.data_id,
        device=str(get_device()) if job.resources.use_gpu else "cpu",
        compile_trunks=job.resources.compile,
        checkpoint_steps=job.resources.checkpoint_steps,
        workers=Workers(context.get_world_rank(), context.get_world_size()),
    )


def load_media(job: Job) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Kept media as arrays: images uint8 (H, W, 3), clips uint8 (T, H, W, 3); each at every size of the config."""
    images: list[np.ndarray] = []
    clips: list[np.ndarray] = []
    num_bytes = 0
    areas = [side * side for side in job.config.sides_px or ()] or [job.load.area_px]
    # Enlarged media would teach blur.
    loads = [job.load.model_copy(update={"area_px": area, "enlarge": False}) for area in areas]
    loaders = [LoadFrames(load, fetched=job.fetched) for load in loads]
    for start in range(0, job.media.num_rows, _ROWS_AT_ONCE):
        for load in loaders:
            for row in load(job.media.slice(start, _ROWS_AT_ONCE)).to_pylist():
                if row["reject_reason"] is not None:
                    continue
                shape = row["frames_t"], row["frames_h"], row["frames_w"], 3
                frames = np.frombuffer(row["frames"], np.uint8).reshape(shape)
                if row["kind"] == "image":
                    images.append(frames[0])
                elif len(frames) >= _MIN_FRAMES:
                    clips.append(frames)
                num_bytes += frames.nbytes
        if num_bytes > job.resources.max_data_mb << 20:
            break
    return images, clips
