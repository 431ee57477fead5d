"""`tokenmill captioner train`: a captioner trained on the captions of the catalog, by Ray Train.

Curates first (a known corpus is not read again), takes what captions the catalog has, trains into
ROOT/captioner/KEY, where KEY is of config and pairs, and judges the result on media held out. What puts captions
together learns from a file of examples instead. An interrupted training goes on from its checkpoint; the same pairs and
config are trained once.
"""

from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.captioner.job import check, job_of
from tokenmill.pipeline.captioner.report import figures_in, show
from tokenmill.pipeline.captioner.worker import train_worker
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.flow.training import train_on_workers
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.storage.run_log import Record


def train_captioner(config: RunConfig, console: Console) -> str:
    """Train as `captioner` of the config says, and judge; returns the URI of the model's folder.

    Raises ConfigError without weights to start from, CatalogError without captions, TrainingError, PromptError,
    CaptionError, and what curating raises.
    """
    part = config.captioner
    check(part.train)
    if part.train.joins is None:
        run_phases(config, ("curate",), "captioner train", console)
    job = job_of(config)
    uri = storage.join(storage.absolute(config.root), "captioner", job.key)
    done = figures_in(uri)
    if done is not None:
        console.print(f"Trained already, on these pairs: {uri}/model", highlight=False)
        show(done, uri, job, console)
        return storage.join(uri, "model")
    console.print(
        f"Training a captioner on {job.num_pairs} pairs, {job.num_held_out} held out; "
        f"{part.resources.num_workers} worker(s)",
        highlight=False,
    )
    arguments = {"job": job, "resources": part.resources, "uri": uri, "clip": config.curate.clip.model}
    steps, dtype = part.train.optimizer.num_steps(job.num_pairs), part.train.dtype
    train_on_workers(config.cluster, train_worker, arguments, part.resources, uri, dtype, steps, _Told(), console)
    found = figures_in(uri)
    assert found is not None
    show(found, uri, job, console)
    return storage.join(uri, "model")


class _Told:
    """How a step went, with the newest loss of the pairs held out."""

    def __init__(self) -> None:
        self._held_out = ""

    def __call__(self, record: Record) -> str:
        if "held_out" in record:
            self._held_out = f"  held out {record['held_out']:.4f}"
        return f"loss {record['train']:.4f}{self._held_out}"
