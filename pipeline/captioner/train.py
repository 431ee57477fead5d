"""`tokenmill captioner train`: a captioner trained on the captions of the catalog, by Ray Train.

Curates first (a known corpus is not read again), takes what captions the catalog has, trains into
ROOT/captioner/KEY, where KEY is of config and pairs, and judges the result on media held out. An interrupted training
goes on from its checkpoint; the same pairs and config are trained once.
"""

import time

from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.captioner.job import check, job_of
from tokenmill.pipeline.captioner.report import figures_in, show
from tokenmill.pipeline.captioner.worker import train_worker
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.flow.loopback import keep_to_loopback
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.storage.cpu import emulation
from tokenmill.storage.run_log import Record

_SHOW_EVERY_S = 5.0


def train_captioner(config: RunConfig, console: Console) -> str:
    """Train as `captioner` of the config says, and judge; returns the URI of the model's folder.

    Raises ConfigError without weights to start from, CatalogError without captions, TrainingError, PromptError,
    CaptionError, and what curating raises.
    """
    part = config.captioner
    check(part.train)
    run_phases(config, ("curate",), "captioner train", console)
    job = job_of(config)
    uri = storage.join(storage.absolute(config.root), "captioner", job.key)
    done = figures_in(uri)
    if done is not None:
        console.print(f"Trained already, on these pairs: {uri}/model", highlight=False)
        show(done, uri, part.train.ask.prompt, console)
        return storage.join(uri, "model")
    num_pairs = job.media.num_rows - job.num_held_out
    console.print(
        f"Training a captioner on {num_pairs} pairs, {job.num_held_out} held out; "
        f"{part.resources.num_workers} worker(s)",
        highlight=False,
    )
    if slow := emulation(part.train.dtype, part.resources.use_gpu):
        console.print(f"  {slow}", style="yellow", highlight=False)
    keep_to_loopback(config.cluster.address)
    from tokenmill.pipeline.flow.on_ray import cluster  # both import Ray
    from tokenmill.training.run.launch import run_on_workers

    arguments = {"job": job, "resources": part.resources, "uri": uri, "clip": config.curate.clip.model}
    with cluster(config.cluster):
        progress = _Progress(console, part.train.optimizer.num_steps(num_pairs))
        run_on_workers(train_worker, arguments, part.resources, uri, progress)
    found = figures_in(uri)
    assert found is not None
    show(found, uri, part.train.ask.prompt, console)
    return storage.join(uri, "model")


class _Progress:
    """Prints a line every few seconds: step, losses, time left."""

    def __init__(self, console: Console, steps: int):
        self._console, self._steps = console, steps
        self._start = self._last = time.monotonic()
        self._first: int | None = None
        self._held_out = ""

    def __call__(self, record: Record) -> None:
        now, step = time.monotonic(), record["step"]
        self._first = step - 1 if self._first is None else self._first
        if "held_out" in record:
            self._held_out = f"  held out {record['held_out']:.4f}"
        if now - self._last >= _SHOW_EVERY_S or step == self._steps:
            self._last = now
            left_s = (now - self._start) / (step - self._first) * (self._steps - step)
            self._console.print(
                f"  step {step}/{self._steps}  loss {record['train']:.4f}{self._held_out}  left {left_s:.0f} s",
                highlight=False,
            )
