"""The loss and gradients of a step -> whether it is taken, skipped, or ends the training; what stands out is marked.

A loss stands out by the median of the last steps and their median deviation from it, which no outlier moves; a level
that stays high becomes the median, so that nothing is skipped for ever. All workers decide on the same sums, and what
they compare with is part of a checkpoint, so a resumed run decides as one that nobody disturbed. Skipped, a step
leaves weights and states as they were; its learning rate passes. The documents of each such step stand in a file:

    run/spikes/step_000123.json
"""

import math
from collections import deque
from statistics import median
from typing import Any

from tokenmill import storage
from tokenmill.storage.errors import TrainingError
from tokenmill.training.config import GuardConfig
from tokenmill.training.data.loader import Loader

_LAST = 64  # steps
_LEAST = 16  # steps from which on a loss can stand out
_NORMAL = 1.4826  # standard deviations of a normal distribution in its median absolute one
_LEAST_SHARE = 0.01  # of the median, which deviations are taken to be at least
_MOST_IN_A_ROW = 20
_NAMED = 5  # documents in a message


class Guard:
    """Of one run."""

    def __init__(self, config: GuardConfig, run_uri: str, loader: Loader, rank: int, seen: dict[str, Any]):
        self._config, self._run_uri, self._loader, self._rank = config, run_uri, loader, rank
        self._losses = deque[float](seen.get("losses", []), maxlen=_LAST)
        self._num_in_a_row = int(seen.get("skipped", 0))
        self.marks: list[dict[str, Any]] = []  # steps that stood out, to be logged

    @property
    def seen(self) -> dict[str, Any]:
        """What the next step is compared with, as JSON holds it."""
        return {"losses": list(self._losses), "skipped": self._num_in_a_row}

    def takes(self, step: int, loss: float, grad_norm: float) -> bool:
        """Whether the optimizers are to take step number `step`, counted from 1, by its mean loss and the norm of its
        gradients, over all workers. Every worker must call it. Raises TrainingError where the config says stop.
        """
        is_finite = math.isfinite(loss) and math.isfinite(grad_norm)
        usual = self._highest_usual()
        if math.isfinite(loss):
            self._losses.append(loss)
        if is_finite and loss <= usual:
            self._num_in_a_row = 0
            return True
        what, does = ("spike", self._config.spike) if is_finite else ("non_finite", self._config.non_finite)
        self._num_in_a_row = self._num_in_a_row + 1 if does == "skip" else 0
        batch = self._loader.plan.step_packs(step - 1)
        documents = [name for number in batch for name in self._loader.names(number)]
        mark = {"step": step, "what": what, "did": {"keep": "kept", "skip": "skipped", "stop": "stopped"}[does]}
        mark |= {"loss": _number(loss), "grad_norm": _number(grad_norm), "usual": _number(usual)}
        uri = storage.join(self._run_uri, "spikes", f"step_{step:06d}.json")
        if self._rank == 0:
            storage.write_json(uri, mark | {"documents": documents})
        self.marks.append(mark)
        if does == "stop" or self._num_in_a_row > _MOST_IN_A_ROW:
            raise TrainingError(self._said(mark, documents, uri))
        return does == "keep"

    def _highest_usual(self) -> float:
        if len(self._losses) < _LEAST:
            return math.inf
        middle = median(self._losses)
        deviation = _NORMAL * median(abs(loss - middle) for loss in self._losses)
        return middle + self._config.spike_factor * max(deviation, _LEAST_SHARE * abs(middle))

    def _said(self, mark: dict[str, Any], documents: list[str], uri: str) -> str:
        named = ", ".join(documents[:_NAMED]) + (", ..." if len(documents) > _NAMED else "")
        if mark["what"] == "spike":
            what = f"the loss is {mark['loss']:.3f}, more than {mark['usual']:.3f}"
        else:
            what = f"the loss is {_text(mark['loss'])}, the norm of its gradients {_text(mark['grad_norm'])}"
        what += "" if mark["did"] == "stopped" else f", and {_MOST_IN_A_ROW} steps before it were skipped"
        skip = "" if mark["did"] == "skipped" else f", or go on without such steps by train.guard.{mark['what']}: skip"
        return (
            f"step {mark['step']}: {what}; look at its {len(documents)} documents ({named}; all of them in {uri}), "
            f"lower train.optimizer.lr{skip}; then train again"
        )


def _number(value: float) -> float | None:
    """For JSON, which knows no other."""
    return value if math.isfinite(value) else None


def _text(value: float | None) -> str:
    return "no number" if value is None else f"{value:.3g}"
