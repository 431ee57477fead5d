"""Machines of a real Ray cluster that die, go and come while a training runs on them (on_nodes.py)."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tokenmill.storage.run_log import read_log
from tokenmill.training.checkpoints import folders
from tokenmill.training.data.plan import sequence_tokens
from tokenmill.training.resources import TrainResources
from tokenmill.training.run.prepare import load_prepared
from tokenmill.training.run.worker import train_worker

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.service]

EVERY = 50
TWO = TrainResources(num_workers=2, threads=1, checkpoint_every_steps=EVERY)


def on_machines(job, resources, names, events=(), num_cpus=1):
    """The events as they were; of a training on machines of those names."""
    folder = Path(job.run_uri + "-on")
    folder.mkdir()
    (folder / "plan.pickle").write_bytes(pickle.dumps((job, resources, num_cpus, names, events)))
    script = Path(__file__).with_name("on_nodes.py")
    subprocess.run([sys.executable, str(script), str(folder)], check=True, timeout=600)
    told = json.loads((folder / "events.json").read_text()) if events else []
    assert [event["what"] for event in told] == [what for _, what, _ in events]
    seen = json.loads((folder / "result.json").read_text())["seen"]
    for event in (event for event in told if event["what"] == "kill"):
        # what was logged until it took effect is seen until a moment later
        reached = max(step for at_s, step in seen if at_s <= event["at_s"] + 3)
        event["lost_s"] = min(at_s for at_s, step in seen if step > reached) - event["at_s"]
    return told


def check_log(job):
    """Each step once, with the documents that the plan has there: so each document once an epoch."""
    log, ready = read_log(job.run_uri), load_prepared(job)
    assert [record["step"] for record in log] == list(range(1, ready.plan.num_steps + 1))
    lengths = sequence_tokens(ready.index, ready.plan.documents, ready.plan.is_null_caption)
    ends = ready.plan.starts[np.minimum(np.arange(ready.plan.num_steps + 1) * 2, ready.plan.num_packs)]
    tokens = [int(lengths[start:end].sum()) for start, end in zip(ends[:-1], ends[1:], strict=True)]
    assert [record["tokens"] for record in log] == tokens
    return log


def losses(log):
    return [record["loss"] for record in log]


@pytest.mark.parametrize("spread_model", [False, True])
def test_without_spare_machines_it_goes_on_with_fewer_workers_and_grows_again(make_job, small_config, spread_model):
    config = small_config(steps=4000, lr=1e-4)
    job, quiet = make_job("job", config), make_job("quiet", config)
    resources = TWO.model_copy(update={"min_workers": 1, "spread_model": spread_model})
    events = [(120, "kill", "b"), (200, "add", "c")]
    lost, _ = on_machines(job, resources, ["a", "b"], events)
    train_worker(quiet, TWO)
    log = check_log(job)
    workers = [record["workers"] for record in log]
    assert workers[:100] == [2] * 100, "the checkpoint before the loss"
    assert workers[100:200] == [1] * 100 and workers[-1] == 2
    grown = workers.index(2, 100)
    assert grown % EVERY == 0 and workers[grown:] == [2] * (4000 - grown), "nothing was computed twice"
    assert losses(log) == pytest.approx(losses(read_log(quiet.run_uri)), rel=1e-3)
    print(f"lost with a machine: {lost['lost_s']:.1f} s")
    assert lost["lost_s"] < 60 + EVERY / 10  # 10 steps/s are few here


def test_with_a_spare_machine_it_goes_on_as_before_bit_for_bit(make_job, small_config):
    config = small_config(steps=300)
    job, quiet = make_job("job", config), make_job("quiet", config)
    lost, again = on_machines(job, TWO, ["a", "b", "c"], [(70, "kill", "a"), (170, "kill", "b"), (171, "add", "d")])[:2]
    on_machines(quiet, TWO, ["a", "b"])
    log = check_log(job)
    assert {record["workers"] for record in log} == {2}
    assert losses(log) == losses(read_log(quiet.run_uri))
    print(f"lost with a machine: {lost['lost_s']:.1f} s and {again['lost_s']:.1f} s")


def test_before_a_machine_is_taken_away_a_checkpoint_is_written(make_job, small_config):
    config = small_config(steps=900, lr=1e-4)
    job = make_job("job", config)
    resources = TWO.model_copy(update={"min_workers": 1, "checkpoint_every_steps": 899, "keep_checkpoints": 9})
    on_machines(job, resources, ["a", "b"], [(100, "drain", "b")])
    log = check_log(job)
    first, *_ = folders.complete_steps(job.run_uri)
    workers = [record["workers"] for record in log]
    assert 100 <= first < 899 and workers[first - 1 : first + 1] == [2, 1]


def test_workers_are_spread_over_machines(make_job, small_config):
    """Each of which has room for both."""
    job = make_job(config=small_config(steps=100))
    (event,) = on_machines(job, TWO, ["a", "b"], [(20, "count", "")], num_cpus=2)
    assert event["found"] == {"a": 1, "b": 1}
