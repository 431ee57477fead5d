"""`tokenmill tokenizer train`: a vision tokenizer trained on the kept media of the catalog, by Ray Train.

Curates first (a known corpus is not read again). Then every worker holds the kept images and clips in memory, at the
sizes that the config names, at most `max_data_mb` of them in the order of their ids, which is random, and trains as
tokenizer/vision/training/loop.py says. An interrupted training goes on from its checkpoint.
"""

import time

from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.flow.loopback import keep_to_loopback
from tokenmill.pipeline.vision.kept import kept_media
from tokenmill.pipeline.vision.worker import Job, train_worker
from tokenmill.storage.cpu import emulation
from tokenmill.storage.run_log import Record

_SHOW_EVERY_S = 5.0


def train_tokenizer(config: RunConfig, out: str | None, console: Console) -> None:
    """Train on the catalog's kept media and save under `out` (default ROOT/tokenizer).

    Raises CatalogError without media, TrainingError when the media or the folder do not suit the training.
    """
    part = config.tokenizer
    media = kept_media(config, "tokenizer train", console)
    uri = storage.absolute(out or storage.join(config.root, "tokenizer"))
    job = Job(part.train, part.resources, config.tokenize.frames, media, uri, config.fetched)
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
    keep_to_loopback(config.cluster.address)
    from tokenmill.pipeline.flow.on_ray import cluster  # both import Ray
    from tokenmill.training.run.launch import run_on_workers

    with cluster(config.cluster):
        run_on_workers(train_worker, {"job": job}, part.resources, uri, _Progress(console, part.train.steps))
    console.print(
        f"Model in {uri}/model; use it with --set tokenize.model={uri}/model\n"
        f"Look at {uri}/reconstructions.png and {uri}/loss.png",
        highlight=False,
    )


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
