"""LoRA beside the weights of a model that is there: what learns, what is written, on one worker and on two."""

import multiprocessing
import pickle
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import Emu3ForCausalLM

from tokenmill.pipeline.phases import Train
from tokenmill.storage.errors import TrainingError
from tokenmill.storage.run_log import read_log
from tokenmill.training.checkpoints import folders
from tokenmill.training.config import LoraConfig, TrainConfig
from tokenmill.training.job import Asked
from tokenmill.training.resources import Parallel, TrainResources
from tokenmill.training.run.worker import train_worker

LORA = LoraConfig(rank=4, alpha=16, dropout=0.1)
WAYS = {"copies": {}, "spread": {"spread_model": True}, "context": {"parallel": Parallel(context=2)}}


def tuned(base: TrainConfig, **changes) -> TrainConfig:
    model = base.model.model_copy(update={"lora": LORA})
    return base.model_copy(update={"model": model, "seed": 5, **changes})


@pytest.fixture
def started(make_job, small_config):
    """A finished training, and a job that goes on from it with LoRA."""
    config = small_config(steps=4, lr=1e-2)
    start = make_job("start", config)
    train_worker(start)
    return start, lambda name, **changes: make_job(name, tuned(config, **changes), parent=start.run_uri)


def weights(job):
    return load_file(Path(job.run_uri, "model", "model.safetensors"))


def test_small_matrices_alone_learn_and_are_added_in_the_end(started):
    from peft import PeftModel

    start, go_on = started
    job = go_on("lora")
    train_worker(job)
    losses = [line["loss"] for line in read_log(job.run_uri)]
    assert losses[-1] < losses[0]
    before, after = weights(start), weights(job)
    assert before.keys() == after.keys(), "a model like any other"
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name}
    saved = load_file(
        Path(
            folders.folder_uri(job.run_uri, 4),
            next(path.name for path in Path(folders.folder_uri(job.run_uri, 4)).glob("*.safetensors")),
        )
    )
    assert all(".lora_" in name for name in saved)
    base = Emu3ForCausalLM.from_pretrained(Path(start.run_uri, "model"), dtype=torch.float32)
    by_peft = PeftModel.from_pretrained(base, Path(job.run_uri, "adapter")).eval()
    merged = Emu3ForCausalLM.from_pretrained(Path(job.run_uri, "model"), dtype=torch.float32).eval()
    ids = torch.randint(10, 200, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(by_peft(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-5)


class StopAtOnce:
    def take(self):
        return Asked.STOP

    def say_stopped(self):
        pass


def test_stopped_and_resumed_it_is_the_same_bit_for_bit(started):
    _, go_on = started
    whole, cut = go_on("whole"), go_on("cut")
    train_worker(whole)
    for _ in range(3):
        train_worker(cut, notices=StopAtOnce())
    train_worker(cut, TrainResources(recompute=True))
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(cut)[name]), name


def work(folder, rank):
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(minutes=2))
    for name, job in pickle.loads((folder / "jobs.pickle").read_bytes()).items():
        train_worker(job, TrainResources(threads=1, num_workers=2, **WAYS[name]), rank, 2)
    dist.destroy_process_group()


def test_two_workers_train_like_one(started, tmp_path):
    _, go_on = started
    alone = go_on("alone")
    jobs = {name: go_on(name) for name in WAYS}
    train_worker(alone)
    (tmp_path / "jobs.pickle").write_bytes(pickle.dumps(jobs))
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True, timeout=120)
    for name, job in jobs.items():
        assert [line["loss"] for line in read_log(job.run_uri)] == pytest.approx(
            [line["loss"] for line in read_log(alone.run_uri)], rel=1e-4
        ), name
        for weight, tensor in weights(alone).items():
            torch.testing.assert_close(tensor, weights(job)[weight], rtol=1e-3, atol=1e-4)


def test_what_cannot_be_is_said(started, small_config):
    given = small_config().model_dump()
    lora = {"rank": 4}
    for change, words in (
        ({"model": given["model"] | {"lora": lora}}, "give model.init_from, or train a stage before"),
        (
            {"model": given["model"] | {"lora": lora, "init_from": "x"}, "optimizer": {"muon_lr": 0.02}},
            "set optimizer.muon_lr to null",
        ),
        (
            {
                "model": given["model"] | {"lora": lora, "init_from": "x"},
                "resources": {"num_workers": 2, "parallel": {"tensor": 2}},
            },
            "with model.lora set it to 1",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            Train.model_validate(given | change)
    stages = {"first": {}, "second": {"model": {"lora": lora}}}
    assert Train.model_validate(given | {"stages": stages}).stages["second"].model.lora.rank == 4
    _, go_on = started
    model = small_config().model.model_copy(update={"lora": LoraConfig(modules=["no_such"])})
    with pytest.raises(TrainingError, match=r"train\.model\.lora\.modules=\['no_such'\]"):
        train_worker(go_on("wrong", model=model))


if __name__ == "__main__":
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(Path(sys.argv[1]), rank)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(any(worker.exitcode for worker in workers))
