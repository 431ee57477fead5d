"""What is seen of a training while it runs: speeds, gradients, waits, spikes; held-out loss and pictures in between.

Nothing of it changes a number of the training but what `train.guard` skips.
"""

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch

from tokenmill.storage.run_log import Record
from tokenmill.training.data.loader import Loader
from tokenmill.training.job import TrainJob
from tokenmill.training.parallel.workers import Workers
from tokenmill.training.run.guard import Guard
from tokenmill.training.run.prepare import Prepared
from tokenmill.training.run.samples import Samples
from tokenmill.training.run.validation import Validation, validation_of

_T = TypeVar("_T")


class Sight:
    """Of one worker; all of them must make the same calls."""

    def __init__(
        self,
        job: TrainJob,
        ready: Prepared,
        loader: Loader,
        workers: Workers,
        seen: dict[str, Any],
    ):
        self._workers, self._monitor, self._num_steps = workers, job.monitor, ready.plan.num_steps
        self._clip_norm = job.config.optimizer.clip_norm
        self._guard = Guard(job.config.guard, job.run_uri, loader, workers.rank, seen)
        self._norms: list[float] = []
        self._wait_s = self._seconds = 0.0
        self._last_s = time.monotonic()
        self._validation: Validation | None = None
        if ready.held_out is not None:
            self._validation = validation_of(job, ready, workers)
        self._samples: Samples | None = None
        if job.monitor.prompts:
            self._samples = Samples(job, ready.layout, workers.rank, workers.device)

    @property
    def seen(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return self._guard.seen

    def begin(self, seconds: float) -> None:
        """The clock goes on from so many, of the starts before."""
        self._seconds, self._last_s = seconds, time.monotonic()

    def waiting(self, steps: Iterable[_T]) -> Iterator[_T]:
        """The same; how long each was waited for counts as waiting for data."""
        waited = iter(steps)
        while True:
            before_s = time.monotonic()
            step = next(waited, None)
            self._wait_s += time.monotonic() - before_s
            if step is None:
                return
            yield step

    def takes(self, step: int, figures: torch.Tensor, total_weight: torch.Tensor) -> bool:
        """Clip the gradients of step number `step`, counted from 1, and say whether they are to be taken: `figures` are
        this worker's sums, of which a step that is not counts tokens alone. Raises TrainingError where it is to stop.
        """
        norm = self._workers.norm(self._clip_norm)
        loss = float(self._workers.sum(figures[-4].clone()) / total_weight)
        is_taken = self._guard.takes(step, loss, norm)
        if is_taken:
            self._norms.append(norm)
        else:
            figures[:-2] = 0.0
        return is_taken

    def told(self, num_tokens: float, at_peak_s: float) -> Record:
        """Of a line of the log: speeds since the last one, of which `at_peak_s` is what it would have taken at the
        devices' peak; the mean norm of gradients; the share of the time that workers waited for data; spikes.
        """
        now = time.monotonic()
        lap_s = now - self._last_s
        self._seconds, self._last_s = self._seconds + lap_s, now
        wait_s = float(self._workers.sum(torch.tensor(self._wait_s, dtype=torch.float64, device=self._workers.device)))
        told: Record = {"grad_norm": sum(self._norms) / len(self._norms)} if self._norms else {}
        told |= {"tokens_per_s": round(num_tokens / lap_s, 1), "seconds": round(self._seconds, 3)}
        told["data_wait"] = round(min(1.0, wait_s / (lap_s * self._workers.world)), 4)
        told |= {} if math.isnan(at_peak_s) else {"mfu": round(at_peak_s / lap_s, 4)}
        told |= {"spikes": self._guard.marks} if self._guard.marks else {}
        self._norms, self._wait_s, self._guard.marks = [], 0.0, []
        return told

    def looks(self, done: int) -> Iterator[Record]:
        """Lines of the log besides that of the step, after `done` steps; the time they take counts in no speed."""
        every, is_last = self._monitor.sample_every_steps, done == self._num_steps
        if self._validation is not None and (done % self._monitor.validate_every_steps == 0 or is_last):
            yield self._line(done, self._validation.losses())
        if self._samples is not None and every is not None and (done % every == 0 or is_last):
            yield self._line(done, {"samples": self._samples.draw(self._workers.model.lm, done)})

    def _line(self, done: int, found: Record) -> Record:
        now = time.monotonic()
        self._seconds, self._last_s = self._seconds + now - self._last_s, now
        return {"step": done} | found | {"seconds": round(self._seconds, 3)}
