"""`tokenmill tokenizer train`: a vision tokenizer trained on the kept media of the catalog, by Ray Train.

Curates first (a known corpus is not read again). Then every worker holds the kept images and clips in memory, at the
sizes that the config names, at most `max_data_mb` of them in the order of their ids, which is random, and trains as
tokenizer/vision/training/loop.py says. An interrupted training goes on from its checkpoint.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import RunConfig, TokenizerResources
from tokenmill.pipeline.flow.on_ray import cluster
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.stages import LoadFrames
from tokenmill.stages.table.columns import PLACES
from tokenmill.storage.cpu import emulation
from tokenmill.storage.identity import fingerprint_of
from tokenmill.storage.run_log import Record
from tokenmill.tokenizer.vision.training.config import VisionTrainConfig
from tokenmill.training.run.launch import run_on_workers

_ROWS_AT_ONCE = 64
_SHOW_EVERY_S = 5.0
_MIN_FRAMES = 4


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know."""

    config: VisionTrainConfig
    resources: TokenizerResources
    load: Any  # LoadFramesConfig
    media: pa.Table
    out: str
    fetched: str

    @property
    def data_id(self) -> str:
        """What the training sees."""
        return fingerprint_of(self.load, self.media["media_id"].to_pylist())


def train_tokenizer(config: RunConfig, out: str | None, console: Console) -> None:
    """Train on the catalog's kept media and save under `out` (default ROOT/tokenizer).

    Raises CatalogError without media, TrainingError when the media or the folder do not suit the training.
    """
    part = config.tokenizer
    run = run_phases(config, ("curate",), "tokenizer train", console)
    media = kept_media(run.catalog)
    uri = storage.absolute(out or storage.join(run.catalog.root, "tokenizer"))
    job = _Job(part.train, part.resources, config.tokenize.frames, media, uri, config.fetched)
    if part.train.is_trained(job.data_id, uri):
        console.print(f"Trained already, on these media: {uri}/model", highlight=False)
        return
    kinds = media["kind"].to_pylist()
    console.print(
        f"Training on {kinds.count('image')} images and {kinds.count('video')} clips; "
        f"{part.resources.num_workers} worker(s)",
        highlight=False,
    )
    if slow := emulation(part.train.dtype, part.resources.use_gpu):
        console.print(f"  {slow}", style="yellow", highlight=False)
    with cluster(config.cluster):
        run_on_workers(_worker, {"job": job}, part.resources, uri, _Progress(console, part.train.steps))
    console.print(
        f"Model in {uri}/model; use it with --set tokenize.model={uri}/model\n"
        f"Look at {uri}/reconstructions.png and {uri}/loss.png",
        highlight=False,
    )


def kept_media(catalog: Catalog) -> pa.Table:
    """Where the kept media are, in the order of their ids, which is random. Raises CatalogError without any."""
    where = pc.field("reject_reason").is_null() & pc.field("kind").isin(["image", "video"])
    media = catalog.media.scan(PLACES.names, where).sort_by("media_id")
    if not media.num_rows:
        raise CatalogError(f"{catalog.root}: no kept media; `tokenmill status` shows why they were rejected")
    return media


def _worker(arguments: dict[str, Any]) -> None:
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    from tokenmill.tokenizer.vision.training.loop import train
    from tokenmill.tokenizer.vision.training.parallel import Workers

    job: _Job = arguments["job"]
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


def load_media(job: _Job) -> tuple[list[np.ndarray], list[np.ndarray]]:
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


class _Progress:
    """Prints a line every few seconds: step, PSNR, codes in use, time left."""

    def __init__(self, console: Console, steps: int):
        self._console, self._steps = console, steps
        self._start = self._last = time.monotonic()
        self._first: int | None = None

    def __call__(self, record: Record) -> None:
        now, step = time.monotonic(), record["step"]
        self._first = step - 1 if self._first is None else self._first
        if now - self._last >= _SHOW_EVERY_S or step == self._steps:
            self._last = now
            left_s = (now - self._start) / (step - self._first) * (self._steps - step)
            self._console.print(
                f"  step {step}/{self._steps}  loss {record['loss']:.4f}  PSNR {record['psnr']:.1f} dB  "
                f"codes {record['codes_used']}  left {left_s:.0f} s",
                highlight=False,
            )
