"""One worker without Ray: stopped and resumed equals uninterrupted, bit for bit; remains of a crash are completed."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Emu3ForCausalLM

from tokenmill import storage
from tokenmill.storage.errors import TrainingError
from tokenmill.storage.run_log import read_log
from tokenmill.training.checkpoints import folders
from tokenmill.training.config import OptimizerConfig
from tokenmill.training.job import DONE, TrainJob, TrainResult
from tokenmill.training.model.optimizer import schedule
from tokenmill.training.resources import TrainResources
from tokenmill.training.run import worker
from tokenmill.training.run.prepare import prepare
from tokenmill.training.run.worker import train_worker

SHARD = "shard-00001-model-00001-of-00001.safetensors"
EVERY_3 = TrainResources(checkpoint_every_steps=3)


def result(job):
    return TrainResult(**storage.read_json(job.at(DONE)))


def figures(job):
    """The log without times."""
    times = ("seconds", "tokens_per_s", "mfu", "data_wait")
    return [{k: v for k, v in r.items() if k not in times} for r in read_log(job.run_uri)]


def weights(job):
    return load_file(Path(job.run_uri) / "model" / "model.safetensors")


class Killed(Exception):  # noqa: N818
    pass


def die_at(patch, step):
    """The worker dies in optimizer step `step`."""
    original = worker._Trainer.step

    def dying(self, number, packs):
        if number == step:
            raise Killed
        return original(self, number, packs)

    patch.setattr(worker._Trainer, "step", dying)


@pytest.mark.parametrize("muon_lr", [None, 0.02])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(make_job, small_config, muon_lr, monkeypatch):
    whole, broken = (make_job(name, small_config(muon_lr=muon_lr)) for name in ("whole", "broken"))
    train_worker(whole, EVERY_3)
    for step in (2, 5, 7):  # before the first checkpoint, between two, after the last but one
        with monkeypatch.context() as patch:
            die_at(patch, step)
            with pytest.raises(Killed):
                train_worker(broken, EVERY_3)
    train_worker(broken, EVERY_3)
    assert result(broken).resumed_from == 6 and result(whole).resumed_from == 0
    assert figures(broken) == figures(whole)
    assert [record["step"] for record in figures(broken)] == list(range(1, 9))
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(broken)[name]), name
    assert asdict(result(broken))["losses"] == asdict(result(whole))["losses"]


def test_remains_of_crashes_are_completed(make_job, monkeypatch):
    """Killed while writing a checkpoint, while preparing, and while exporting: the next start finishes."""
    whole, broken = make_job("whole"), make_job("broken")
    train_worker(whole, EVERY_3)
    prepare(broken)
    Path(broken.run_uri, "plan.json").unlink()  # died before its last write
    with monkeypatch.context() as patch:
        patch.setattr(worker, "finish", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            train_worker(broken, EVERY_3)
    newest = Path(folders.folder_uri(broken.run_uri, 8))
    newest.joinpath("meta.json").unlink()  # died before its last write
    newest.joinpath(SHARD).write_bytes(b"half")
    with open(broken.at("log.jsonl"), "a") as log:
        log.write('{"step": 9, "lo')
    train_worker(broken, EVERY_3)
    assert result(broken).resumed_from == 6
    assert figures(broken) == figures(whole)
    assert all(torch.equal(tensor, weights(broken)[name]) for name, tensor in weights(whole).items())


def test_on_an_object_store_all_is_the_same(make_job, s3):
    """Shards, plan, checkpoints, log and model on S3; stopped and resumed there."""
    local = make_job()
    train_worker(local, EVERY_3)
    uris = [f"{s3}/tokens/{Path(uri).name}" for uri in local.shard_uris]
    for uri, target in zip(local.shard_uris, uris, strict=True):
        storage.write_bytes(target, Path(uri).read_bytes())
    remote = TrainJob(local.config, shard_uris=uris, codebook_size=local.codebook_size, run_uri=f"{s3}/runs/one")
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, 5)
        with pytest.raises(Killed):
            train_worker(remote, EVERY_3)
    train_worker(remote, EVERY_3)
    assert figures(remote) == figures(local)
    assert result(remote).resumed_from == 3
    with storage.local_folder(remote.at("model")) as folder:
        exported = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, exported[name]) for name, tensor in weights(local).items())
    assert storage.list_names(remote.at("checkpoints")) == ["step_000006", "step_000008"]


def test_a_finished_run_is_left_alone(make_job):
    job = make_job()
    train_worker(job)
    before = {path: path.stat().st_mtime_ns for path in Path(job.run_uri).rglob("*")}
    train_worker(job)
    assert before == {path: path.stat().st_mtime_ns for path in Path(job.run_uri).rglob("*")}


def test_only_the_newest_checkpoints_stay(make_job):
    job = make_job()
    train_worker(job, TrainResources(checkpoint_every_steps=2, keep_checkpoints=2))
    assert storage.list_names(job.at("checkpoints")) == ["step_000006", "step_000008"]
    meta = storage.read_json(storage.join(folders.folder_uri(job.run_uri, 8), "meta.json"))
    assert (meta["step"], meta["plan"]) == (8, result(job).plan)


def test_a_folder_of_another_job_is_an_error(make_job, small_config):
    train_worker(make_job())
    for other in (make_job(config=small_config(lr=1.0)), make_job(tokens_version=7)):
        with pytest.raises(ValueError, match="another config or other token shards"):
            train_worker(other)


def test_a_checkpoint_of_another_plan_is_an_error(make_job):
    job = make_job()
    train_worker(job)
    uri = storage.join(folders.folder_uri(job.run_uri, 8), "meta.json")
    storage.write_json(uri, storage.read_json(uri) | {"plan": "0" * 16})
    Path(job.run_uri, DONE).unlink()
    with pytest.raises(ValueError, match=r"step_000008.*plan 0{16}"):
        train_worker(job)


def test_it_learns_and_the_log_says_so(make_job, small_config):
    job = make_job(config=small_config(steps=60, lr=1e-2))
    train_worker(job)
    log = read_log(job.run_uri)
    assert log[-1]["image"] < log[0]["image"] - 0.2 and log[-1]["text"] < log[0]["text"] - 1
    names = {"step", "loss", "text", "image", "video", "structure", "lr", "tokens", "tokens_per_s"}
    assert names <= set().union(*log), "over all steps: a step may hold no video"
    assert sum(record["tokens"] for record in log) == result(job).num_tokens
    assert result(job).losses["image"] == pytest.approx(sum(r["image"] for r in log[-20:]) / 20)


def test_log_lines_over_several_steps_hold_the_mean(make_job):
    one, three = make_job("one"), make_job("three")
    train_worker(one)
    train_worker(three, TrainResources(log_every_steps=3))
    assert [r["step"] for r in figures(three)] == [3, 6, 8]
    assert sum(r["tokens"] for r in figures(three)) == sum(r["tokens"] for r in figures(one))
    assert figures(three)[0]["loss"] == pytest.approx(sum(r["loss"] for r in figures(one)[:3]) / 3, rel=0.02)


def test_recomputing_activations_changes_nothing(make_job):
    one, two = make_job("one"), make_job("two")
    train_worker(one)
    train_worker(two, TrainResources(recompute=True))
    assert [r["loss"] for r in figures(one)] == pytest.approx([r["loss"] for r in figures(two)], rel=1e-6)


def test_a_loss_that_explodes_stops_the_run(make_job, small_config):
    job = make_job(config=small_config(lr=1e30, clip_norm=1e30, warmup_steps=0))
    with pytest.raises(TrainingError, match=r"lower .*lr"):
        train_worker(job)
    assert all(math.isfinite(record["loss"]) for record in read_log(job.run_uri))


def test_learning_rate_warms_up_and_ends_at_zero():
    config = OptimizerConfig(steps=100, warmup_steps=10)
    rates = [schedule(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[-1] < 1e-3
    assert max(rates) == pytest.approx(rates[9], rel=0.02)


def test_the_export_needs_nothing_of_this_project(make_job):
    job = make_job()
    train_worker(job)
    folder = Path(result(job).model_uri)
    model = Emu3ForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocabulary = json.loads((folder / "vocabulary.json").read_text())
    assert model.config.vocab_size == vocabulary["vision_offset"] + vocabulary["codebook_size"]
    assert tokenizer.convert_tokens_to_ids("<|image start|>") == vocabulary["sov"]


def with_share(config, share):
    return config.model_copy(
        update={"data": config.data.model_copy(update={"mixture": {"text": share, "media": 1 - share}})}
    )


def test_text_documents_are_learned_beside_images(make_job, mixed_uris, small_config):
    job = make_job(config=with_share(small_config(steps=60, lr=1e-2), 0.4), shard_uris=mixed_uris)
    train_worker(job)
    log = read_log(job.run_uri)
    first, last = (
        {kind: np.mean([r[kind] for r in part if kind in r]) for kind in ("document", "text", "image")}
        for part in (log[:6], log[-6:])
    )
    assert last["document"] < first["document"] - 1.5, "12 words in any order"
    assert last["text"] < first["text"] - 0.5 and last["image"] < first["image"] - 0.2
    assert result(job).losses["document"] == pytest.approx(
        np.mean([r["document"] for r in log[-20:] if "document" in r])
    )
    summary = storage.read_json(job.at("plan.json"))
    num_media = 20 - sum(result(job).excluded.values())
    assert (result(job).num_texts, result(job).num_documents) == (15, num_media + summary["num_text_pieces"])
    assert summary["num_text_pieces"] > 40
    assert result(job).num_text_tokens / result(job).num_tokens == pytest.approx(0.4, abs=0.02)
    assert sum(record["tokens"] for record in log) == result(job).num_tokens


def test_with_text_stopped_and_resumed_equals_uninterrupted_bit_for_bit(
    make_job, mixed_uris, small_config, monkeypatch
):
    config = with_share(small_config(), 0.3)
    whole, broken = (make_job(name, config, shard_uris=mixed_uris) for name in ("whole", "broken"))
    train_worker(whole, EVERY_3)
    with monkeypatch.context() as patch:
        die_at(patch, 5)
        with pytest.raises(Killed):
            train_worker(broken, EVERY_3)
    train_worker(broken, EVERY_3)
    assert result(broken).resumed_from == 3 and result(broken).plan == result(whole).plan
    assert figures(broken) == figures(whole)
    assert any("document" in record for record in figures(whole)[3:])
    assert all(torch.equal(tensor, weights(broken)[name]) for name, tensor in weights(whole).items())


def test_a_run_begun_before_there_were_texts_goes_on(make_job, monkeypatch):
    """Its plan.json counts no texts."""
    job = make_job()
    with monkeypatch.context() as patch:
        die_at(patch, 5)
        with pytest.raises(Killed):
            train_worker(job, EVERY_3)
    summary = storage.read_json(job.at("plan.json"))
    old = {name: value for name, value in summary.items() if not name.startswith("num_text")}
    storage.write_json(job.at("plan.json"), old)
    train_worker(job, EVERY_3)
    assert (result(job).resumed_from, result(job).num_texts) == (3, 0)
