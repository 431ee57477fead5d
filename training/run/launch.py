"""A function on Ray Train's workers, while the driver watches the log that rank 0 writes.

Ray Train only places and restarts workers, as training/run/recovery.py decides: checkpoints go straight to storage,
because Ray's own beside them would be a second truth. Its output is kept quiet, signals stay ours, and a worker's own
error is raised as it was.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from tokenmill import storage
from tokenmill.storage import failures, stopping
from tokenmill.storage.errors import TrainingError, UserError
from tokenmill.storage.run_log import LogTail, Record, read_log
from tokenmill.training.job import Asked
from tokenmill.training.resources import WorkerResources

_TAIL_EVERY_S = 0.5
_SAVED_WITHIN_S = 30.0  # Slurm and Kubernetes kill after as many seconds
_FREED_WITHIN_S = 15.0
_LOOK_FOR_ROOM_EVERY_S = 15.0
# Room that was counted may have gone with a machine whose death was not known yet; then it is counted again.
_WAITS = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "12"}
# Threads that spin while they wait take the CPU from those they wait for. Measured with two threads on two cores that
# other processes used too: 324 tokens/s spinning, 7,489 sleeping.
_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class Going:
    """How a training goes on when workers come and go."""

    sizes: Sequence[int]  # the numbers of workers that it may have
    newest: Callable[[], int]  # the step of its newest checkpoint
    board: Any = None  # of training/run/notices.py, where its workers read one

    def save_and_stop(self) -> None:
        """Return when a checkpoint is complete, or no more time is left for it."""
        if self.board is not None:
            self.board.ask.remote(Asked.STOP)
            ray.wait([self.board.stopped.remote()], timeout=_SAVED_WITHIN_S)


def run_on_workers(
    function: Callable[[dict[str, Any]], None],
    arguments: dict[str, Any],
    resources: WorkerResources,
    run_uri: str,
    on_record: Callable[[Record], None],
    going: Going | None = None,
) -> None:
    """Call `function(arguments)` on `resources.num_workers` workers of one process group, until all return.

    `on_record` is called here for every line that appears in the log under `run_uri` (storage/run_log.py), by whose
    steps progress is known where `going` does not say it. Ray must be up. Raises the UserError that a worker raised, or
    else its ValueError or RuntimeError.
    """
    going = going or Going([resources.num_workers], partial(_logged_steps, run_uri))
    with stopping.kept(), _watched(run_uri, on_record):
        try:
            unwrapped(lambda: _fit(function, arguments, resources, run_uri, going))
        except Exception as error:
            found = failures.find(error)
            if found is None or found[0] != "lost_node" or isinstance(error, UserError):
                raise
            raise TrainingError(
                f"{run_uri}: {failures.line(*found)}; a training goes on from its newest checkpoint, and "
                f"does so by itself until resources.max_failures (now {resources.max_failures}) were in vain"
            ) from error


def _fit(
    function: Callable[[dict[str, Any]], None],
    arguments: dict[str, Any],
    resources: WorkerResources,
    run_uri: str,
    going: Going,
) -> None:
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig, RunConfig, ScalingConfig

    from tokenmill.training.run.network import OnRaysNetwork
    from tokenmill.training.run.recovery import Failures, Scaling

    scaling = ScalingConfig(
        num_workers=(min(going.sizes), max(going.sizes)),
        use_gpu=resources.use_gpu,
        resources_per_worker={"CPU": resources.cpus_per_worker} | ({"GPU": 1} if resources.use_gpu else {}),
        # CPU workers share a machine's memory bandwidth; GPUs of one machine exchange gradients without a network
        placement_strategy="PACK" if resources.use_gpu else "SPREAD",
        elastic_resize_monitor_interval_s=_LOOK_FOR_ROOM_EVERY_S,
    )

    class Trainer(TorchTrainer):  # of Ray Train v2, which its types hide
        """Ends with the interrupt that our own handler raises; Ray's waits for its workers, six seconds and more."""

        controller: Any = None

        def _register_sigint_handler(self, controller: Any) -> None:
            self.controller = controller

        def _initialize_and_run_controller(self, **policies: Any) -> Any:
            policies["failure_policy"] = Failures(resources.max_failures, going.newest)
            policies["scaling_policy"] = Scaling(scaling, going.sizes, going.newest, going.board, run_uri)
            of_ray: Any = super()
            return of_ray._initialize_and_run_controller(**policies)

    for name, value in _WAITS.items():
        os.environ.setdefault(name, value)
    filesystem, path = storage.filesystem(run_uri)
    run_config: Any = RunConfig(
        name="ray",
        storage_path=path,
        storage_filesystem=filesystem,
        logging_config=LoggingConfig(log_level="ERROR"),
        worker_runtime_env={"env_vars": _THREADS | {name: os.environ[name] for name in _THREADS if name in os.environ}},
    )
    trainer = Trainer(
        function,
        train_loop_config=arguments,
        torch_config=OnRaysNetwork(),
        scaling_config=scaling,
        run_config=run_config,
    )
    try:
        trainer.fit()
    except (KeyboardInterrupt, SystemExit):
        if trainer.controller is not None:
            if stopping.is_given_time():
                going.save_and_stop()
                _await_end(trainer.controller)
            ray.kill(trainer.controller)  # and with it its workers
        raise


def _await_end(controller: Any) -> None:
    """Until Ray Train has seen its workers end, and given back what it reserved for them; or for long enough."""
    until_s = time.monotonic() + _FREED_WITHIN_S
    while time.monotonic() < until_s:
        try:
            ray.get(controller.get_result.remote(), timeout=_FREED_WITHIN_S)
            return
        except ray.exceptions.RayTaskError:  # it is not over
            time.sleep(_TAIL_EVERY_S)
        except ray.exceptions.RayError:
            return


def _logged_steps(run_uri: str) -> int:
    return max((record["step"] for record in read_log(run_uri)), default=0)


def unwrapped(call: Callable[[], Any]) -> Any:
    """The result of `call`; where Ray wraps an error of a worker that a person may understand, that is raised."""
    try:
        return call()
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except Exception as error:
        failures = getattr(error, "worker_failures", {}).values()  # of Ray Train's WorkerGroupError
        known = [failure for failure in failures if isinstance(failure, UserError)]
        plain = [failure for failure in failures if type(failure) in (ValueError, RuntimeError)]
        raise [*known, *plain, error][0] from (error if known or plain else error.__cause__)


@contextmanager
def _watched(run_uri: str, on_record: Callable[[Record], None]) -> Iterator[None]:
    """While inside, new lines of the run's log go to `on_record`."""
    tail = LogTail(run_uri)
    tail.fresh()  # lines of an earlier start are no news
    stop = threading.Event()

    def pass_on() -> None:
        for record in tail.fresh():
            on_record(record)

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
