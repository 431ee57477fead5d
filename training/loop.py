"""A job -> a trained model: Ray Train starts the workers, the driver watches their log.

Everything lives under the run's folder, a path or an s3:// prefix, so the next call of `fit` completes what a Ctrl-C, a
crash or a killed machine left behind. Ray Train only places and restarts workers: checkpoints go straight to storage
(training/checkpoint.py), because Ray's own beside them would be a second truth.

Torch and transformers are imported in the workers, or while they prepare: together they take 10 s of CPU.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from tokenizer import storage
from training.config import TrainResources
from training.job import DONE, TrainJob, TrainResult
from training.log import LogTail

OnReport = Callable[[int, int, dict[str, float], float], None]

_TAIL_EVERY_S = 0.5
# Threads that spin while they wait take the CPU from those they wait for. Measured with two threads on two cores that
# other processes used too: 324 tokens/s spinning, 7,489 sleeping.
_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
_NOT_LOSSES = {"step", "lr", "tokens", "tokens_per_s", "seconds"}


def fit(job: TrainJob, resources: TrainResources | None = None, on_report: OnReport | None = None) -> TrainResult:
    """Train, from the newest checkpoint if there is one; a finished run only returns its result. Ray must be up.

    `on_report` is called here, on the driver, for every logged step: (steps done, steps in all, losses by name,
    tokens per second). Raises ValueError for a job that cannot be trained, KeyboardInterrupt when stopped.
    """
    resources = resources or TrainResources()
    if (summary := job.read_summary()) is None or not storage.exists(job.at(DONE)):
        preparing = ray.remote(num_cpus=1)(_prepare).remote(job)
        from ray.train import torch as _  # noqa: F401

        summary = _unwrapped(lambda: ray.get(preparing))
        with _interrupts_restored(), _watched(job.run_uri, summary["num_steps"], on_report):
            _unwrapped(lambda: _run_workers(job, resources))
        if not storage.exists(job.at(DONE)):
            raise KeyboardInterrupt(
                f"{job.run_uri}: training stopped; run it again to go on from the newest checkpoint"
            )
    return TrainResult(**storage.read_json(job.at(DONE)))


def _prepare(job: TrainJob) -> dict[str, Any]:
    from training.prepare import prepare

    return prepare(job)


def _worker(arguments: dict[str, Any]) -> None:
    from ray.train import get_context
    from ray.train.torch import get_device

    from training.worker import train_worker

    context = get_context()
    train_worker(
        arguments["job"],
        arguments["resources"],
        context.get_world_rank(),
        context.get_world_size(),
        get_device() if arguments["resources"].use_gpu else None,
    )


def _run_workers(job: TrainJob, resources: TrainResources) -> None:
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

    filesystem, path = storage.filesystem(job.run_uri)
    run_config: Any = RunConfig(
        name="ray",
        storage_path=path,
        storage_filesystem=filesystem,
        failure_config=FailureConfig(max_failures=resources.max_failures),
        logging_config=LoggingConfig(log_level="ERROR"),
        worker_runtime_env={"env_vars": _THREADS | {name: os.environ[name] for name in _THREADS if name in os.environ}},
    )
    TorchTrainer(
        _worker,
        train_loop_config={"job": job, "resources": resources},
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=resources.use_gpu,
            resources_per_worker={"CPU": resources.cpus_per_worker} | ({"GPU": 1} if resources.use_gpu else {}),
        ),
        run_config=run_config,
    ).fit()


def _unwrapped(call: Callable[[], Any]) -> Any:
    """The result of `call`; where Ray wraps a worker's ValueError or RuntimeError, that one is raised."""
    try:
        return call()
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except Exception as error:
        failures = getattr(error, "worker_failures", {}).values()  # of Ray Train's WorkerGroupError
        known = [failure for failure in failures if type(failure) in (ValueError, RuntimeError)]
        raise (known or [error])[0] from None


@contextmanager
def _interrupts_restored() -> Iterator[None]:
    """Ray Train takes over Ctrl-C and does not give it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _watched(run_uri: str, num_steps: int, on_report: OnReport | None) -> Iterator[None]:
    """While inside, new lines of the run's log go to `on_report`."""
    if on_report is None:
        yield
        return
    tail = LogTail(run_uri)
    tail.fresh()  # lines of an earlier start are no news
    stop = threading.Event()

    def pass_on() -> None:
        for record in tail.fresh():
            losses = {name: value for name, value in record.items() if name not in _NOT_LOSSES}
            on_report(record["step"], num_steps, losses, record["tokens_per_s"])

    def watch() -> None:
        while not stop.wait(_TAIL_EVERY_S):
            pass_on()

    thread = threading.Thread(target=watch, name="train-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        pass_on()
