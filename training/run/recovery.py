"""Workers die and machines come and go -> whether a training goes on, and with how many workers. Runs where Ray Train
controls it; each of these classes takes the place of the one that Ray Train has by default.

A lost worker or machine is gone on from as long as checkpoints follow one another; an error that would only come again
(damaged data, a mistake of ours, a loss that is no number) ends the training at once. Where machines are missing it
goes on with fewer workers, of a number that divides the batch, and it grows again just after a checkpoint, so that
nothing is computed twice.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.train.v2._internal.execution.controller.state import PreemptingState
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from tokenmill.storage import failures
from tokenmill.storage.errors import UserError
from tokenmill.storage.object_store import StoreError
from tokenmill.training.job import Asked

Newest = Callable[[], int]

_ANSWER_S = 5.0
_GO_BY = {"lost_node", "network", "gpu"}  # of storage/failures.py: another machine, or a minute later, may not have it


class Failures(DefaultFailurePolicy):
    """Ends a training whose workers failed for what stays, or `max_failures` + 1 times with no progress in between, as
    told by `newest`.
    """

    def __init__(self, max_failures: int, newest: Newest):
        super().__init__(FailureConfig(max_failures=max_failures))
        self._newest, self._last, self._in_vain = newest, -1, 0

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """RETRY or RAISE."""
        if not isinstance(training_failed_error, WorkerGroupError):
            return super().make_decision(training_failed_error)
        if not all(goes_by(error) for error in training_failed_error.worker_failures.values()):
            return FailureDecision.RAISE
        newest = self._newest()
        self._in_vain = 1 if newest > self._last else self._in_vain + 1
        self._last = max(newest, self._last)
        return FailureDecision.RETRY if self._in_vain <= self.failure_config.max_failures else FailureDecision.RAISE


def goes_by(error: BaseException) -> bool:
    """Whether a worker that failed so may do better when it tries again."""
    found = failures.find(error)
    if isinstance(error, UserError):
        return isinstance(error, StoreError)
    return found is not None and found[0] in _GO_BY


class Scaling(ElasticScalingPolicy):
    """As many workers as there is room for, of the numbers in `sizes`; more of them only after a new checkpoint, as
    told by `newest`. When Ray hears that a machine in use goes away, workers that read `board` are asked to save.

    Ray reserves room under the name of a training for three minutes, also when its driver was killed. So `name` is that
    of the training and not of a start of it: the next one finds its room reserved for itself instead of waiting for it.
    """

    def __init__(self, config: ScalingConfig, sizes: Sequence[int], newest: Newest, board: Any, name: str):
        super().__init__(config)
        self._sizes, self._newest, self._board, self._name = sizes, newest, board, name
        self._checkpoint_before: int | None = None  # while more workers are possible

    def after_controller_start(self, train_run_context: Any) -> None:
        """Of Ray Train's controller."""
        named = copy.copy(train_run_context)
        object.__setattr__(named, "run_id", self._name)
        super().after_controller_start(named)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """As soon as there is room for the fewest."""
        self._checkpoint_before = None
        return super().make_decision_for_non_running_worker_group()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Grow, or leave it."""
        if self._checkpoint_before is None:
            decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
            if isinstance(decision, ResizeDecision) and decision.num_workers > worker_group_state.num_workers:
                self._checkpoint_before = self._newest()
            return NoopDecision()
        if self._newest() == self._checkpoint_before:
            return NoopDecision()
        self._checkpoint_before = None
        possible = self._count_possible_workers(self._get_reserved_resources() or {})
        return self._get_resize_decision(possible) if possible > worker_group_state.num_workers else NoopDecision()

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Of Ray Train's controller."""
        is_news = isinstance(current_state, PreemptingState) and not isinstance(previous_state, PreemptingState)
        if is_news and self._board is not None:
            self._board.ask.remote(Asked.SAVE)

    def _get_reserved_resources(self) -> Any:
        """Without machines that died since it was last looked, which is every 20 s."""
        room = self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
        try:
            return ray.get(room, timeout=_ANSWER_S)
        except ray.exceptions.RayError:  # busy; asked again in two seconds
            return None

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = super()._count_possible_workers(reserved_resources)
        return max((size for size in self._sizes if size <= possible), default=0)
