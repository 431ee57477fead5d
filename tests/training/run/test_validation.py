"""Held-out documents are judged alike by any number of workers, and nothing of the training changes by it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tokenmill import storage
from tokenmill.storage.errors import TrainingError
from tokenmill.storage.run_log import read_log
from tokenmill.tokenizer.sequence import Kind
from tokenmill.training.job import DONE, is_step
from tokenmill.training.resources import Monitor, TrainResources
from tokenmill.training.run import worker
from tokenmill.training.run.prepare import load_prepared, prepare
from tokenmill.training.run.worker import train_worker

EVERY_3 = TrainResources(checkpoint_every_steps=3)


@pytest.fixture
def held_out_job(make_job, small_config, mixed_uris):
    """(folder, share=0.3) -> a job on images, clips and texts of which a share is held out."""

    def make(folder="run", share=0.3, **monitor):
        config = small_config()
        config = config.model_copy(update={"data": config.data.model_copy(update={"held_out": share})})
        return make_job(
            folder, config, shard_uris=mixed_uris, monitor=Monitor(**({"validate_every_steps": 3} | monitor))
        )

    return make


def validations(job):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(job.run_uri) if "val" in line]


def steps(job):
    times = ("seconds", "tokens_per_s", "data_wait")
    return [{k: v for k, v in line.items() if k not in times} for line in read_log(job.run_uri) if is_step(line)]


def weights(job):
    return load_file(Path(job.run_uri) / "model" / "model.safetensors")


def test_validating_changes_nothing_of_the_training(held_out_job):
    often, never = held_out_job("often"), held_out_job("never", validate_every_steps=10_000)
    train_worker(often, EVERY_3)
    train_worker(never, EVERY_3)
    assert [line["step"] for line in validations(often)] == [3, 6, 8]
    assert [line["step"] for line in validations(never)] == [8], "at the end, always"
    assert steps(often) == steps(never)
    assert validations(often)[-1] == validations(never)[-1]
    assert all(torch.equal(tensor, weights(never)[name]) for name, tensor in weights(often).items())


def test_stopped_and_resumed_it_says_the_same(held_out_job, monkeypatch):
    whole, broken = held_out_job("whole"), held_out_job("broken")
    train_worker(whole, EVERY_3)
    original = worker._Trainer.step
    with monkeypatch.context() as patch:
        patch.setattr(worker._Trainer, "step", lambda self, n, packs: 1 / 0 if n == 5 else original(self, n, packs))
        with pytest.raises(ZeroDivisionError):
            train_worker(broken, EVERY_3)
    train_worker(broken, EVERY_3)
    assert (steps(broken), validations(broken)) == (steps(whole), validations(whole))
    done = storage.read_json(broken.at(DONE))
    assert done["resumed_from"] == 3 and done["validation"] == validations(whole)[-1]["val"]
    assert done["held_out"] == storage.read_json(broken.at("plan.json"))["held_out"] != {}


def test_the_loss_is_that_of_each_document_read_alone(held_out_job):
    """By kind, by place and by frame, against a plain computation of transformers' own loss."""
    job = held_out_job()
    prepare(job)
    trainer = worker._Trainer(job, EVERY_3, load_prepared(job), 0, 1, torch.device("cpu"))
    told = trainer.sight._validation.losses()
    lm = trainer.model.lm.eval()
    found: dict[tuple, list[float]] = {}
    for pack in trainer.sight._validation._packs:
        for number in range(pack.documents.max() + 1):
            mine = pack.documents == number
            ids, kinds = torch.from_numpy(pack.ids[mine])[None].long(), pack.kinds[mine]
            hidden = lm.model(inputs_embeds=lm.model.embed_tokens(ids), use_cache=False,
                              documents=torch_documents(ids)).last_hidden_state  # fmt: skip
            nll = -torch.log_softmax(hidden @ lm.lm_head.weight.T, -1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
            frame = 0
            for place, (kind, loss) in enumerate(zip(kinds[1:].tolist(), nll.tolist(), strict=True), 1):
                found.setdefault((kind,), []).append(loss)
                found.setdefault((kind, 2 ** int(math.log2(place))), []).append(loss)
                if kind == Kind.VIDEO:
                    found.setdefault(("frame", frame), []).append(loss)
                frame += int(ids[0, place]) == trainer.ready.layout.vocabulary.eof
    names = {kind.name.lower(): kind for kind in Kind}
    assert {"image", "video", "text", "document", "structure", "loss"} == set(told["val"])
    for name, value in told["val"].items():
        if name != "loss":
            assert value == pytest.approx(np.mean(found[names[name],]), rel=1e-4), name
    for name, places in told["val_by_place"].items():
        for place, value in places.items():
            assert value == pytest.approx(np.mean(found[names[name], int(place)]), rel=1e-4), (name, place)
    assert list(told["val_by_frame"]) == ["0", "1"]
    for frame, value in told["val_by_frame"].items():
        assert value == pytest.approx(np.mean(found["frame", int(frame)]), rel=1e-4)
    assert told["val_tokens"] == sum(len(values) for key, values in found.items() if len(key) == 1)
    weight = {"text": 1.0, "document": 1.0}
    sums = [(weight.get(name, 0.5), found[names[name],]) for name in told["val"] if name != "loss"]
    expected = sum(w * sum(v) for w, v in sums) / sum(w * len(v) for w, v in sums)
    assert told["val"]["loss"] == pytest.approx(expected, rel=1e-4)


def torch_documents(ids):
    from tokenmill.training.model.attention import attend_mask

    return attend_mask(torch.zeros(ids.shape, dtype=torch.int32))


def test_few_packs_are_looked_at_where_few_are_asked_for(held_out_job):
    one, all_ = held_out_job("one", 0.5, validate_packs=1), held_out_job("all", 0.5)
    train_worker(one)
    train_worker(all_)
    assert 0 < validations(one)[0]["val_tokens"] < validations(all_)[0]["val_tokens"]


def test_a_share_that_leaves_nothing_is_an_error(held_out_job):
    with pytest.raises(TrainingError, match=r"data.held_out 1e-06 of \d+ documents leaves none to validate on; raise"):
        prepare(held_out_job(share=1e-6))
