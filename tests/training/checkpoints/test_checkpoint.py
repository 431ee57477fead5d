"""Checkpoints of 1, 2, 3 and 4 workers, read by other numbers of them: all train what one does that nobody disturbs."""

import json
import multiprocessing
import pickle
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

from tokenmill import storage
from tokenmill.storage.checksums import write_checksums
from tokenmill.storage.errors import DamagedError
from tokenmill.storage.run_log import read_log
from tokenmill.training.checkpoints import folders, shard_files
from tokenmill.training.job import DONE, Asked
from tokenmill.training.resources import Parallel, TrainResources
from tokenmill.training.run.prepare import load_prepared
from tokenmill.training.run.worker import _Trainer, train_worker

WORLDS = [1, 2, 3, 4, 3, 2, 1, 4, 1]  # a step with each of them
SHARED = [(1, 1), (2, 1), (1, 1), (2, 2), (1, 1), (1, 2), (1, 1), (1, 2), (1, 1)]  # context, tensor
NEVER = TrainResources(checkpoint_every_steps=1000)


class StopAtOnce:
    """Notices of a driver that was sent a signal."""

    def __init__(self):
        self.is_said = False

    def take(self):
        return Asked.STOP

    def say_stopped(self):
        self.is_said = True


def one_after_the_other(folder):
    """A step with each of the worlds, on each job; every worker is a process that has imported all there is."""
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    for number, world in enumerate(WORLDS):
        workers = [context.Process(target=work, args=(folder, number, rank, world)) for rank in range(world)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not any(worker.exitcode for worker in workers)


def work(folder, number, rank, world):
    store = dist.FileStore(str(folder / f"store-{number}"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(minutes=5))
    for name, job in pickle.loads((folder / "jobs.pickle").read_bytes()):
        context, tensor = SHARED[number] if name == "shared" else (1, 1)
        parallel = Parallel(context=context, tensor=tensor)
        resources = NEVER.model_copy(update={"spread_model": name == "spread", "threads": 1, "parallel": parallel})
        notices = StopAtOnce() if rank == 0 else None
        train_worker(job, resources, rank, world, notices=notices)
        assert notices is None or notices.is_said
    dist.destroy_process_group()


@pytest.mark.service
def test_any_number_of_workers_goes_on_from_the_checkpoint_of_any_other(tmp_path, make_job, small_config):
    config = small_config(muon_lr=0.02, steps=len(WORLDS))
    data, model = {"batch_packs": 4}, {"num_heads": 4, "num_kv_heads": 2}
    config = config.model_copy(
        update={"data": config.data.model_copy(update=data), "model": config.model.model_copy(update=model)}
    )
    alone, *others = (make_job(name, config) for name in ("alone", "copies", "spread", "shared"))
    train_worker(alone)
    (tmp_path / "jobs.pickle").write_bytes(pickle.dumps([(job.run_uri.rsplit("/", 1)[1], job) for job in others]))
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True, timeout=300)
    expected = read_log(alone.run_uri)
    for job in others:
        log = read_log(job.run_uri)
        assert [record["workers"] for record in log] == WORLDS
        assert [record["tokens"] for record in log] == [record["tokens"] for record in expected]
        assert [r["loss"] for r in log] == pytest.approx([r["loss"] for r in expected], rel=1e-4)
        assert folders.complete_steps(job.run_uri) == [8, 9]
        of_four = list(Path(folders.folder_uri(job.run_uri, 8)).glob("*.safetensors"))
        sizes = sorted(file.stat().st_size for file in of_four)
        assert len(sizes) == 4 and sizes[-1] < 1.4 * sum(sizes) / 4, "no worker writes the whole"
        train_worker(job)  # exports
        weights, theirs = (load_file(Path(each.run_uri, "model", "model.safetensors")) for each in (alone, job))
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4)


def test_a_large_state_stands_in_several_files(make_job, small_config):
    job = make_job(config=small_config())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_files, "FILE_BYTES", 10_000)
        train_worker(job, NEVER)
    folder = Path(folders.folder_uri(job.run_uri, 8))
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 10
    names = [name for file in files for name in load_file(file)]
    tensors = json.loads((folder / "tensors.json").read_text())
    assert sorted(names) == sorted(tensors)
    Path(job.run_uri, DONE).unlink()
    train_worker(job, NEVER)  # reads them


def trainer_of(job):
    return _Trainer(job, NEVER, load_prepared(job), 0, 1, torch.device("cpu"))


def test_a_checkpoint_of_an_older_release_is_gone_on_from(make_job):
    """It holds the whole model in one file, and all states in another."""
    new, old = make_job("new"), make_job("old")
    every = TrainResources(checkpoint_every_steps=4, keep_checkpoints=9)
    train_worker(new, every)
    train_worker(old, every)
    for job in (new, old):
        Path(job.run_uri, DONE).unlink()
        storage.delete_folder(folders.folder_uri(job.run_uri, 8))
    trainer, folder = trainer_of(old), Path(folders.folder_uri(old.run_uri, 4))
    meta = (folder / "meta.json").read_bytes()
    storage.delete_folder(str(folder))
    folder.mkdir()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, state = get_state_dict(trainer.model, trainer.optimizers, options=options)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    torch.save(state, folder / "optimizer.pt")
    write_checksums(folder)
    (folder / "meta.json").write_bytes(meta)
    for job in (new, old):
        train_worker(job, every)
    assert [r["loss"] for r in read_log(old.run_uri)] == [r["loss"] for r in read_log(new.run_uri)]
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(DamagedError, match=r"step_000004/model\.safetensors"):
        trainer.checkpoints.load(4)


def test_what_keeps_a_checkpoint_from_being_written_is_raised_and_it_is_none(make_job, monkeypatch):
    job = make_job()

    def full(*_):
        raise OSError(28, "No space left on device", "/full")

    train_worker(job, TrainResources(checkpoint_every_steps=3))
    Path(job.run_uri, DONE).unlink()
    trainer = trainer_of(job)
    with monkeypatch.context() as patch:
        patch.setattr(shard_files, "checksum", full)
        trainer.checkpoints.begin(99)
        with pytest.raises(OSError, match="No space left"):
            trainer.checkpoints.wait()
    assert folders.newest_step(job.run_uri) == 8
    trainer.checkpoints.begin(99)
    trainer.checkpoints.wait()
    assert folders.complete_steps(job.run_uri) == [8, 99]
    assert [Path(uri).name for uri in folders.all_folders(job.run_uri)] == ["step_000008", "step_000099"]


def test_a_step_waits_for_a_copy_and_not_for_the_disk(make_job, monkeypatch):
    """What is written is what was there, whatever training does meanwhile."""
    job = make_job()
    train_worker(job, NEVER)
    trainer, may_write = trainer_of(job), threading.Event()
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    original = shard_files.Writer.write_data

    def slow(self, plan, planner):
        may_write.wait(30)
        return original(self, plan, planner)

    monkeypatch.setattr(shard_files.Writer, "write_data", slow)
    trainer.checkpoints.begin(99)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(1)
    assert folders.newest_step(job.run_uri) == 8
    may_write.set()
    trainer.checkpoints.wait()
    assert folders.newest_step(job.run_uri) == 99
    trainer.checkpoints.load(99)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


def test_a_checkpoint_without_its_list_of_files_is_damaged(make_job):
    job = make_job()
    train_worker(job, NEVER)
    trainer = trainer_of(job)
    Path(folders.folder_uri(job.run_uri, 8), "checksums.json").unlink()
    with pytest.raises(DamagedError, match=r"checksums\.json"):
        trainer.checkpoints.load(8)


if __name__ == "__main__":
    one_after_the_other(Path(sys.argv[1]))
