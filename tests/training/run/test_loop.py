"""Ray Train around the worker: two workers compute what one does, reports arrive, a killed worker is replaced."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

from tokenmill.storage.errors import TrainingError
from tokenmill.storage.run_log import read_log
from tokenmill.storage.stopping import Stop
from tokenmill.training.checkpoints.folders import newest_step
from tokenmill.training.job import DONE, Drawing, is_step
from tokenmill.training.resources import Monitor, Parallel, TrainResources
from tokenmill.training.run.loop import fit
from tokenmill.training.run.worker import train_worker
from tokenmill.training.tracking.events import read_events

pytestmark = pytest.mark.usefixtures("local_ray")


PROMPTS = ["a red square", "a blue one"]
SEEN = {
    "monitor": Monitor(validate_every_steps=3, sample_every_steps=4, prompts=PROMPTS),
    "drawing": Drawing("builtin", grid_h=2, grid_w=2, top_k=5, top_p=1.0, temperature=1.0, guidance=2.0),
}


def losses(job):
    return [record["loss"] for record in read_log(job.run_uri) if is_step(record)]


def validations(job):
    """Step, loss by kind and by place."""
    found = [line for line in read_log(job.run_uri) if "val" in line]
    return [{"step": line["step"]} | line["val"] | line["val_by_place"]["image"] for line in found]


def seen(config):
    """With some documents held out, in an odd number of packs."""
    return config.model_copy(update={"data": config.data.model_copy(update={"held_out": 0.4})})


def assert_seen_alike(one, other):
    assert [line["step"] for line in validations(one)] == [3, 6, 8]
    for mine, others in zip(validations(one), validations(other), strict=True):
        assert mine == pytest.approx(others, rel=1e-3)
    for step in (4, 8):
        pictures = [Path(job.at(f"samples/step_00000{step}.png")).read_bytes() for job in (one, other)]
        assert len(pictures[0]) > 100 and len(set(map(len, pictures))) <= 2


def own_train_workers():
    """Process ids of this test's Ray Train workers: no other cluster's."""

    def parent(pid):
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])

    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"RayTrainWorker" in (entry / "cmdline").read_bytes():
                ancestor = int(entry.name)
                while ancestor > 1 and ancestor != os.getpid():
                    ancestor = parent(ancestor)
                found += [int(entry.name)] if ancestor == os.getpid() else []
        except FileNotFoundError:
            continue
    assert found
    return found


def exported(job):
    return load_file(Path(job.run_uri, "model", "model.safetensors"))


def test_two_workers_train_like_one_and_report(make_job, small_config):
    """Three packs a step: one worker has two, the other one and must not stall."""
    config = small_config(muon_lr=0.02)
    config = seen(config.model_copy(update={"data": config.data.model_copy(update={"batch_packs": 3})}))
    alone, pair = make_job("alone", config, **SEEN), make_job("pair", config, tokens_version=4, **SEEN)
    train_worker(alone)
    reports = []
    resources = TrainResources(num_workers=2, cpus_per_worker=0.5, threads=1)
    result = fit(pair, resources, lambda *report: reports.append(report))
    assert losses(pair) == pytest.approx(losses(alone), rel=1e-4)
    assert [(step, total) for step, total, _, _ in reports] == [(step, 8) for step in range(1, 9)]
    assert (
        {"loss", "text", "image"} <= reports[0][2].keys()
        and reports[0][3]["tokens_per_s"] > 0
        and "mfu" not in reports[0][3]
    )
    assert (result.num_steps, result.tokens_version, result.resumed_from) == (8, 4, 0)
    assert Path(result.model_uri, "model.safetensors").is_file()
    assert_seen_alike(alone, pair)
    assert reports[-1][2]["val"] == validations(pair)[1]["loss"], "the newest before the last step"
    assert "val" not in reports[0][2] and 0 <= reports[0][3]["data_wait"] <= 1
    tags = {value.tag for event in read_events(pair.at("tensorboard")) for value in event.summary.value}
    assert {"train/loss", "train/grad_norm", "train/data_wait", "val/image", "val_by_place/image/8", "samples"} <= tags
    before = time.monotonic()
    assert fit(pair) == result
    assert time.monotonic() - before < 1, "a finished run starts no workers"


def test_spread_weights_train_like_whole_ones(make_job, small_config):
    """FSDP2 on two workers that share each pack; its checkpoint is read by one worker that holds all."""
    alone, spread = (make_job(name, seen(small_config(muon_lr=0.02)), **SEEN) for name in ("alone", "spread"))
    train_worker(alone)
    parallel, begun = Parallel(context=2), []
    resources = TrainResources(num_workers=2, cpus_per_worker=0.5, threads=1, spread_model=True, parallel=parallel)
    fit(spread, resources, on_begin=begun.append)
    assert begun[0]["memory"].startswith("a step needs about 0.0 GB of each worker: weights 0.0")
    assert losses(spread) == pytest.approx(losses(alone), rel=1e-4)
    assert_seen_alike(alone, spread)
    norms = [[line["grad_norm"] for line in read_log(job.run_uri) if is_step(line)] for job in (alone, spread)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    of_two = exported(spread)
    Path(spread.run_uri, DONE).unlink()
    train_worker(spread)
    of_one = exported(spread)
    for name, tensor in exported(alone).items():
        torch.testing.assert_close(tensor, of_two[name], rtol=1e-3, atol=1e-4)
        assert torch.equal(of_two[name], of_one[name]), name


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_goes_on(make_job, small_config):
    job, quiet = (make_job(name, config=small_config(steps=400)) for name in ("job", "quiet"))
    resources = TrainResources(checkpoint_every_steps=20, max_failures=1, cpus_per_worker=0.5, threads=1)

    def kill_one():
        while len(read_log(job.run_uri)) < 50:
            time.sleep(0.05)
        for pid in own_train_workers():
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    result = fit(job, resources)
    killer.join()
    assert result.resumed_from >= 20
    train_worker(quiet, resources)
    assert losses(job) == pytest.approx(losses(quiet), rel=1e-6)


def when_steps_are_logged(job, num_steps, call):
    """Start a thread that calls when so many steps are logged."""

    def watch():
        while len(read_log(job.run_uri)) < num_steps:
            time.sleep(0.05)
        call()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_lost_worker_is_one_line_with_the_folder_and_how_to_go_on(make_job, small_config):
    job = make_job(config=small_config(steps=400))
    resources = TrainResources(checkpoint_every_steps=20, max_failures=0, cpus_per_worker=0.5, threads=1)
    killer = when_steps_are_logged(job, 30, lambda: [os.kill(pid, signal.SIGKILL) for pid in own_train_workers()])
    with pytest.raises(TrainingError) as lost:
        fit(job, resources)
    killer.join()
    said = str(lost.value)
    assert said.startswith(f"{job.run_uri}: a worker or its machine was lost: ") and "\n" not in said, said
    assert "run the same command again to continue; a training goes on from its newest checkpoint" in said
    assert "until resources.max_failures (now 0) were in vain" in said
    assert fit(job, resources).resumed_from >= 20


@pytest.mark.slow
def test_an_interrupt_ends_the_workers_at_once(make_job, small_config):
    job = make_job(config=small_config(steps=4000))
    interrupts = when_steps_are_logged(job, 20, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        fit(job, TrainResources(cpus_per_worker=0.5, threads=1))
    interrupts.join()
    time.sleep(5)
    num_logged = len(read_log(job.run_uri))
    time.sleep(2)
    assert len(read_log(job.run_uri)) == num_logged, "a worker goes on"


@pytest.mark.slow
@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGUSR1])
def test_before_it_ends_by_a_signal_that_gives_time_a_checkpoint_is_written(make_job, small_config, which):
    job, quiet = (make_job(name, config=small_config(steps=300, lr=1e-4)) for name in ("job", "quiet"))
    resources = TrainResources(num_workers=2, cpus_per_worker=0.5, threads=1, checkpoint_every_steps=10_000)
    said, free = [], ray.available_resources()["CPU"]  # an interrupted training before leaves some reserved
    sender = when_steps_are_logged(job, 30, lambda: os.kill(os.getpid(), which))
    with Stop(said.append).listening(), pytest.raises(KeyboardInterrupt):
        fit(job, resources)
    sender.join()
    assert ray.available_resources()["CPU"] >= free, "what it had reserved is free again"
    step = newest_step(job.run_uri)
    assert 30 <= step < 300 and len(read_log(job.run_uri)) == step
    assert fit(job, resources).resumed_from == step
    train_worker(quiet)
    assert losses(job) == pytest.approx(losses(quiet), rel=1e-3)


def test_errors_arrive_as_they_were_raised(make_job):
    with pytest.raises(TrainingError, match="tokenize first"):
        fit(make_job(tokens_fingerprint="nobody"))
