"""Steps that stand out are marked, skipped or the end, with their documents named; a skip survives a resume."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tokenmill.storage.errors import TrainingError
from tokenmill.storage.run_log import read_log
from tokenmill.training.config import GuardConfig
from tokenmill.training.model.model import PackLoss
from tokenmill.training.resources import TrainResources
from tokenmill.training.run import worker
from tokenmill.training.run.guard import Guard
from tokenmill.training.run.worker import train_worker

EVERY_3 = TrainResources(checkpoint_every_steps=3)
BAD = 4  # step, counted from 1


class OnePack:
    """A loader of steps of one pack of two documents."""

    def __init__(self):
        self.plan = self

    def step_packs(self, step):
        return [step]

    def names(self, number):
        return [f"{number}a", f"{number}b"]


def guard(folder, seen=None, **config):
    return Guard(GuardConfig(**config), str(folder), OnePack(), 0, seen or {})


def losses(num, seed=0):
    return (3 + 0.1 * np.random.default_rng(seed).standard_normal(num)).tolist()


def test_a_spike_is_told_by_the_steps_before_it(tmp_path):
    made = guard(tmp_path)
    assert all(made.takes(step, loss, 1.0) for step, loss in enumerate(losses(60), 1)) and not made.marks
    assert made.takes(61, 3.5, 1.0) and not made.marks, "within the usual"
    assert made.takes(62, 5.0, 1.0), "kept, and marked"
    [mark] = made.marks
    assert (mark["step"], mark["what"], mark["did"], mark["loss"]) == (62, "spike", "kept", 5.0)
    assert 3.6 < mark["usual"] < 4.2
    told = json.loads((tmp_path / "spikes/step_000062.json").read_text())
    assert told == mark | {"documents": ["61a", "61b"]}


def test_a_level_that_stays_becomes_the_usual_one(tmp_path):
    made = guard(tmp_path, spike="skip")
    for step, loss in enumerate(losses(40), 1):
        made.takes(step, loss, 1.0)
    taken = [made.takes(step, loss + 1.0, 1.0) for step, loss in enumerate(losses(60, 1), 41)]
    assert not any(taken[:5]) and all(taken[-20:])


def test_too_many_skips_in_a_row_end_it(tmp_path):
    made = guard(tmp_path, non_finite="skip")
    assert not any(made.takes(step, math.nan, 1.0) for step in range(1, 11))
    made = guard(tmp_path, json.loads(json.dumps(made.seen)), non_finite="skip")
    assert not any(made.takes(step, 2.0, math.inf) for step in range(11, 21)), "the gradients are no numbers"
    with pytest.raises(TrainingError, match=r"step 21: .* no number.* 20 steps before it were skipped.* \(20a, 20b; "):
        made.takes(21, math.nan, math.nan)


def test_before_there_is_something_to_compare_with_nothing_is_a_spike(tmp_path):
    made = guard(tmp_path, spike="stop")
    assert all(made.takes(step, 100.0 if step == 15 else loss, 1.0) for step, loss in enumerate(losses(15), 1))


def test_stop_names_documents_and_the_file_with_all(tmp_path):
    made = guard(tmp_path, spike="stop")
    for step, loss in enumerate(losses(20), 1):
        made.takes(step, loss, 1.0)
    with pytest.raises(TrainingError) as stopped:
        made.takes(21, 9.0, 1.0)
    said = str(stopped.value)
    assert "step 21: the loss is 9.000, more than 3." in said and "2 documents (20a, 20b; all of them in" in said
    assert "lower train.optimizer.lr, or go on without such steps by train.guard.spike: skip" in said
    assert Path(said.split("all of them in ")[1].split(")")[0]).is_file()


def poisoned(patch, step=BAD, value=math.nan):
    """The loss of a step is multiplied by it."""
    original, now = PackLoss.forward, []
    real_step = worker._Trainer.step
    patch.setattr(worker._Trainer, "step", lambda self, n, packs: (now.append(n), real_step(self, n, packs))[1])

    def forward(self, *inputs, **how):
        loss, sums = original(self, *inputs, **how)
        return (loss * value, sums * value) if now[-1] + 1 == step else (loss, sums)

    patch.setattr(PackLoss, "forward", forward)


def with_guard(config, **guard_config):
    return config.model_copy(update={"guard": GuardConfig(**guard_config)})


def log(job):
    times = ("seconds", "tokens_per_s", "data_wait")
    return [{k: v for k, v in line.items() if k not in times} for line in read_log(job.run_uri)]


def weights(job):
    return load_file(Path(job.run_uri) / "model" / "model.safetensors")


def test_a_skipped_step_leaves_weights_and_states_and_is_named(make_job, small_config, monkeypatch):
    job = make_job(config=with_guard(small_config(muon_lr=0.02), non_finite="skip"))
    kept, original = {}, worker._Trainer.step

    def step(self, number, packs):
        if number in (BAD - 1, BAD):
            state = {name: tensor.clone() for name, tensor in self.checkpoints._state().items()}
            kept[number] = state
        return original(self, number, packs)

    monkeypatch.setattr(worker._Trainer, "step", step)
    poisoned(monkeypatch)
    train_worker(job)
    before, after = kept[BAD - 1], kept[BAD]
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    line = log(job)[BAD - 1]
    assert "loss" not in line and "grad_norm" not in line and line["tokens"] > 0
    [mark] = line["spikes"]
    assert (mark["step"], mark["did"], mark["loss"]) == (BAD, "skipped", None)
    named = json.loads(Path(job.at("spikes/step_000004.json")).read_text())["documents"]
    known = {row["media_id"] for uri in job.shard_uris for row in pq.read_table(uri).to_pylist()}
    assert len(named) > 5 and set(named) <= known
    assert all(math.isfinite(tensor.sum()) for tensor in weights(job).values())


def test_a_skip_survives_a_resume_bit_for_bit(make_job, small_config, monkeypatch):
    config = with_guard(small_config(), non_finite="skip")
    whole, broken = make_job("whole", config), make_job("broken", config)
    with monkeypatch.context() as patch:
        poisoned(patch)
        train_worker(whole, EVERY_3)
    for dies in (5, 7):  # before the checkpoint that follows the skip, and after it
        with monkeypatch.context() as patch:
            poisoned(patch)
            inner = worker._Trainer.step
            patch.setattr(
                worker._Trainer, "step", lambda self, n, packs, d=dies, i=inner: 1 / 0 if n == d else i(self, n, packs)
            )
            with pytest.raises(ZeroDivisionError):
                train_worker(broken, EVERY_3)
    train_worker(broken, EVERY_3)
    assert log(broken) == log(whole)
    assert all(torch.equal(tensor, weights(broken)[name]) for name, tensor in weights(whole).items())


def test_what_spikes_are_measured_by_survives_a_resume(make_job, small_config, monkeypatch):
    """The losses of before a checkpoint are part of the median after it."""
    config = with_guard(small_config(steps=24), spike="skip", spike_factor=50.0)
    whole, broken = make_job("whole", config), make_job("broken", config)
    every_10 = TrainResources(checkpoint_every_steps=10)
    with monkeypatch.context() as patch:
        poisoned(patch, 21, 100.0)
        train_worker(whole, every_10)
    with monkeypatch.context() as patch:
        inner = worker._Trainer.step
        patch.setattr(worker._Trainer, "step", lambda self, n, packs: 1 / 0 if n == 15 else inner(self, n, packs))
        with pytest.raises(ZeroDivisionError):
            train_worker(broken, every_10)
    with monkeypatch.context() as patch:
        poisoned(patch, 21, 100.0)
        train_worker(broken, every_10)
    [spike] = [spike for line in log(whole) for spike in line.get("spikes", [])]
    assert (spike["step"], spike["did"]) == (21, "skipped")
    assert log(broken) == log(whole)


def test_skipped_steps_are_not_part_of_a_mean(make_job, small_config, monkeypatch):
    job = make_job(config=with_guard(small_config(), non_finite="skip"))
    poisoned(monkeypatch)
    train_worker(job, TrainResources(log_every_steps=8))
    [line] = log(job)
    assert math.isfinite(line["loss"]) and [spike["step"] for spike in line["spikes"]] == [BAD]
