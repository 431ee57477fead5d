"""Which failures are gone on from, how often, and with how many workers."""

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError
from ray.train import DataConfig
from ray.train.backend import BackendConfig
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2._internal.execution.worker_group import WorkerGroupState
from ray.train.v2.api.config import RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from tokenmill.storage.errors import DamagedError, TrainingError
from tokenmill.storage.object_store import StoreError
from tokenmill.training.run.recovery import Failures, Scaling, goes_by

GLOO = RuntimeError(
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [10.0.0.2]:61675: Connection reset by peer"
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ActorDiedError(), True),
        (NodeDiedError("the node was lost"), True),
        (GLOO, True),
        (RuntimeError("NCCL error: unhandled system error"), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
        (StoreError("s3://bucket/run: the store failed again and again"), True),
        (TrainingError("step 3: the loss is nan; lower train.optimizer.lr"), False),
        (DamagedError("run/checkpoints/step_000003/tensors.json"), False),
        (RuntimeError("CUDA out of memory"), False),
        (OSError(28, "No space left on device"), False),
        (AttributeError("no attribute"), False),
    ],
)
def test_what_another_try_may_mend(error, expected):
    assert goes_by(error) == expected


def lost(*errors):
    return WorkerGroupError("lost", dict(enumerate(errors)))


def test_losses_are_counted_while_there_is_no_new_checkpoint():
    steps = iter([0, 0, 0, 50, 50, 50, 50])
    policy = Failures(2, lambda: next(steps))
    said = [policy.make_decision(lost(ActorDiedError(), GLOO)) for _ in range(7)]
    retry, end = FailureDecision.RETRY, FailureDecision.RAISE
    assert said == [retry, retry, end, retry, retry, end, end]


def test_a_mistake_ends_it_also_beside_a_loss():
    policy = Failures(9, lambda: 0)
    assert policy.make_decision(lost(AttributeError("x"), GLOO)) == FailureDecision.RAISE
    assert policy.make_decision(lost(TrainingError("nan"))) == FailureDecision.RAISE
    assert policy.make_decision(ControllerError(ValueError("x"))) == FailureDecision.RAISE


def test_a_training_begun_again_finds_the_room_that_a_killed_one_reserved(local_ray):
    """Another one does not: of two that live at once, each has its own."""
    config = ScalingConfig(num_workers=(2, 2), resources_per_worker={"CPU": 1})
    context = TrainRunContext(RunConfig(), None, config, BackendConfig(), DataConfig())

    def begins(name):
        policy = Scaling(config, [2], lambda: 0, None, name)
        policy.after_controller_start(context)
        return policy, isinstance(policy.make_decision_for_non_running_worker_group(), ResizeDecision)

    killed, other, again = [begins(name) for name in ("a", "b", "a")]
    assert [is_begun for _, is_begun in (killed, other, again)] == [True, False, True]
    for policy, _ in (other, again):
        policy.before_controller_abort()


class Room(Scaling):
    """A cluster of so many machines with one CPU each."""

    num_machines = 0

    def _get_reserved_resources(self):
        return {str(number): {"CPU": 1.0} for number in range(self.num_machines)}

    def _maybe_send_resource_request(self):
        pass


def test_sizes_divide_the_batch_and_growth_waits_for_a_checkpoint():
    steps = [100]
    config = ScalingConfig(num_workers=(1, 4), elastic_resize_monitor_interval_s=0)
    policy = Room(config, [1, 2, 4], lambda: steps[-1], None, "run")

    def begins(num_machines):
        policy.num_machines = num_machines
        decision = policy.make_decision_for_non_running_worker_group()
        return decision.num_workers if isinstance(decision, ResizeDecision) else None

    assert [begins(machines) for machines in (0, 1, 2, 3, 4, 9)] == [None, 1, 2, 2, 4, 4]

    def grows(num_machines):
        policy.num_machines = num_machines
        state = WorkerGroupState(start_time=0.0, placement_group_handle=None, workers=[None, None], sync_actor=None)
        decision = policy.make_decision_for_running_worker_group(state, None)
        assert isinstance(decision, (ResizeDecision, NoopDecision))
        return decision.num_workers if isinstance(decision, ResizeDecision) else None

    assert [grows(machines) for machines in (2, 3, 1, 4, 4)] == [None] * 5
    steps.append(150)
    assert grows(4) == 4
    assert grows(4) is None
    steps.append(200)
    assert grows(3) is None, "it was gone again"
