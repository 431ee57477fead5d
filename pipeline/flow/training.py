"""A training on Ray's workers, begun by a command of its own: a word on what is slow here, and a line every few
seconds.
"""

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from tokenmill.pipeline.config import Cluster
from tokenmill.pipeline.flow.loopback import keep_to_loopback
from tokenmill.storage.cpu import emulation
from tokenmill.storage.run_log import Record
from tokenmill.training.resources import WorkerResources

_SHOW_EVERY_S = 5.0


def train_on_workers(
    config: Cluster,
    worker: Callable[[dict[str, Any]], None],
    arguments: dict[str, Any],
    resources: WorkerResources,
    uri: str,
    dtype: str,
    steps: int,
    told: Callable[[Record], str],
    console: Console,
) -> None:
    """Call `worker(arguments)` on each worker; `told` says how a step went, of `steps`, from its record in the log
    under `uri`. Raises what a worker raises.
    """
    if slow := emulation(dtype, resources.use_gpu):
        console.print(f"  {slow}", style="yellow", highlight=False)
    keep_to_loopback(config.address)
    from tokenmill.pipeline.flow.on_ray import cluster  # both import Ray
    from tokenmill.training.run.launch import run_on_workers

    with cluster(config):
        run_on_workers(worker, arguments, resources, uri, _Progress(console, steps, told))


class _Progress:
    """Prints step, how it went, time left."""

    def __init__(self, console: Console, steps: int, told: Callable[[Record], str]):
        self._console, self._steps, self._told = console, steps, told
        self._start = self._last = time.monotonic()
        self._first: int | None = None

    def __call__(self, record: Record) -> None:
        now, step, words = time.monotonic(), record["step"], self._told(record)
        self._first = step - 1 if self._first is None else self._first
        if now - self._last >= _SHOW_EVERY_S or step == self._steps:
            self._last = now
            left_s = (now - self._start) / (step - self._first) * (self._steps - step)
            self._console.print(f"  step {step}/{self._steps}  {words}  left {left_s:.0f} s", highlight=False)
