"""A job -> a trained model: Ray Train starts the workers, the driver watches their log.

Everything lives under the run's folder, a path or an s3:// prefix, so the next call of `fit` completes what a Ctrl-C, a
crash or a killed machine left behind. Ray Train only places and restarts workers: checkpoints go straight to storage
(training/checkpoints/checkpoint.py), because Ray's own beside them would be a second truth.

Torch and transformers are imported in the workers, or while they prepare: together they take 10 s of CPU.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import ray

from tokenmill import storage
from tokenmill.storage.run_log import Record
from tokenmill.training.checkpoints.folders import newest_step
from tokenmill.training.job import DONE, NOT_LOSSES, SPEEDS, TrainJob, TrainResult, is_step, read_result, told_of
from tokenmill.training.resources import TrainResources
from tokenmill.training.run.launch import Going, run_on_workers, unwrapped
from tokenmill.training.run.notices import Reader, open_board
from tokenmill.training.tracking.trackers import tracking

OnReport = Callable[[int, int, dict[str, float], dict[str, float]], None]


def fit(
    job: TrainJob,
    resources: TrainResources | None = None,
    on_report: OnReport | None = None,
    on_begin: Callable[[dict[str, Any]], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> TrainResult:
    """Train, from the newest checkpoint if there is one; a finished run only returns its result. Ray must be up.

    `on_begin` is called here, on the driver, with plan.json before the first step, and in `memory` what a step needs
    (training/parallel/memory.py) as a sentence; `on_report` for every logged step:
    (steps done, steps in all, losses by name, speeds by name: tokens_per_s, data_wait, and mfu where the peak of the
    GPUs is known); the loss of the newest validation is `val`. `on_note` gets what a person should know.

    Raises TrainingError for a job that cannot be trained, ValueError for numbers of workers that do not suit its batch,
    KeyboardInterrupt when stopped; at SIGTERM and SIGUSR1 a checkpoint is written first.
    """
    resources = resources or TrainResources()
    sizes = resources.sizes(job.config.data.batch_packs)
    if (summary := job.read_summary()) is None or not storage.exists(job.at(DONE)):
        preparing = ray.remote(num_cpus=1)(_prepare).remote(job, resources)
        from ray.train import torch as _  # noqa: F401

        summary = unwrapped(lambda: ray.get(preparing))
        if on_begin:
            on_begin(summary)

        note, validated, noted = on_note or _unheard, dict[str, float](), set[int]()

        def report(record: Record) -> None:
            tell(record)
            if not is_step(record):
                validated.update({"val": record["val"]["loss"]} if "val" in record else {})
                return
            for spike in record.get("spikes", []):  # a resumed training logs again what it had logged
                if spike["step"] not in noted:
                    noted.add(spike["step"])
                    note(told_of(spike))
            losses = {name: value for name, value in record.items() if name not in NOT_LOSSES} | validated
            if on_report:
                speeds = {name: record[name] for name in SPEEDS if name in record}
                on_report(record["step"], summary["num_steps"], losses, speeds)

        with tracking(job, note) as tell:
            going = Going(sizes, partial(newest_step, job.run_uri), open_board())
            arguments = {"job": job, "resources": resources, "board": going.board}
            run_on_workers(_worker, arguments, resources, job.run_uri, report, going)
        if not storage.exists(job.at(DONE)):
            raise KeyboardInterrupt(
                f"{job.run_uri}: training stopped; run it again to go on from the newest checkpoint"
            )
    return read_result(job)


def _unheard(text: str) -> None:
    """Of one who asked for no notes."""


def _prepare(job: TrainJob, resources: TrainResources) -> dict[str, Any]:
    from tokenmill.training.parallel.memory import memory_of
    from tokenmill.training.run.prepare import prepare

    return prepare(job) | {"memory": memory_of(job, resources).told()}


def _worker(arguments: dict[str, Any]) -> None:
    from ray.train import get_context
    from ray.train.torch import get_device

    from tokenmill.training.run.worker import train_worker

    context = get_context()
    notices = Reader(arguments["board"]) if context.get_world_rank() == 0 else None
    train_worker(
        arguments["job"],
        arguments["resources"],
        context.get_world_rank(),
        context.get_world_size(),
        get_device() if arguments["resources"].use_gpu else None,
        notices,
    )
