"""Learning from choices: pairs of votes, a reference computed once, margins that rise, mistakes that are named."""

import json

import numpy as np
import pytest

from tokenmill import storage
from tokenmill.storage.errors import TrainingError
from tokenmill.storage.run_log import read_log
from tokenmill.tokenizer.drawings import DRAWINGS
from tokenmill.tokenizer.shards import write_parquet
from tokenmill.training.config import PreferenceConfig
from tokenmill.training.data.pairs import pairs_of
from tokenmill.training.job import TrainJob
from tokenmill.training.resources import TrainResources
from tokenmill.training.run import reference, worker
from tokenmill.training.run.given import give_pairs
from tokenmill.training.run.prepare import prepare
from tokenmill.training.run.tables import read_table
from tokenmill.training.run.worker import train_worker

EACH = 4


@pytest.fixture(scope="module")
def first(shard_uris, small_config, tmp_path_factory):
    """A finished run."""
    job = TrainJob(small_config(steps=20, lr=1e-2), shard_uris, 64, str(tmp_path_factory.mktemp("first") / "v1-one"))
    train_worker(job)
    return job


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """A folder of four drawings for each of twelve prompts, and the votes: the one with the larger codes is chosen."""
    import pyarrow as pa

    folder, rng = tmp_path_factory.mktemp("drawings"), np.random.default_rng(0)
    rows, votes = [], []
    for n in range(12):
        codes = [np.sort(rng.integers(0, 64, 12)) + 0 for _ in range(EACH)]
        ids = [f"d{n}-{k}" for k in range(EACH)]
        rows += [
            {"sample_id": name, "prompt": f"a square, {n}", "seed": k, "codes": each.tolist(), "grid_t": None,
             "grid_h": 3, "grid_w": 4, "fps": None, "model": "v1-one"}
            for k, (name, each) in enumerate(zip(ids, codes, strict=True))
        ]  # fmt: skip
        ranked = sorted(range(EACH), key=lambda k: codes[k].sum())
        votes.append({"chosen": ids[ranked[-1]], "rejected": ids[ranked[0]], "by": "size"})
    write_parquet(pa.Table.from_pylist(rows, schema=DRAWINGS), str(folder / "drawings.parquet"))
    (folder / "votes.jsonl").write_text("".join(json.dumps(vote) + "\n" for vote in votes))
    return folder


@pytest.fixture()
def make_preferred(make_job, first, drawings, small_config):
    def make(folder="run", votes=None, **optimizer):
        config = small_config(**({"steps": 30, "lr": 2e-3} | optimizer))
        part = PreferenceConfig(samples=str(drawings), votes=[str(votes or drawings / "votes.jsonl")])
        model = config.model.model_copy(update={"dropout": 0.0})
        config = config.model_copy(update={"preferences": part, "model": model})
        job = make_job(folder, config, parent=first.run_uri, given=["drawings", "votes"])
        give_pairs(job)
        return job

    return make


def test_margins_rise_from_nothing(make_preferred):
    job = make_preferred()
    train_worker(job)
    log = read_log(job.run_uri)
    assert log[0]["margin"] == pytest.approx(0, abs=1e-3) and log[0]["preference"] == pytest.approx(np.log(2), abs=1e-3)
    assert log[-1]["margin"] > 0.5 and log[-1]["right"] > 0.8
    assert log[-1]["chosen_nll"] < log[0]["chosen_nll"], "the next-token term"
    summary = job.read_summary()
    assert (summary["num_documents"], summary["num_dialogues"]) == (12, 0)
    table = read_table(job.at(reference.NAME))
    assert len(table) == 12 and (table["chosen"].to_numpy() < 0).all()
    assert storage.read_json(job.at("done.json"))["losses"]["margin"] > 0


def test_resumed_it_is_the_same_bit_for_bit(make_preferred, monkeypatch):
    whole, broken = make_preferred("whole", steps=8), make_preferred("broken", steps=8)
    every = TrainResources(checkpoint_every_steps=3)
    train_worker(whole, every)
    original = worker._Trainer.step

    def dying(self, number, packs):
        if number == 5:
            raise InterruptedError
        return original(self, number, packs)

    with monkeypatch.context() as patch:
        patch.setattr(worker._Trainer, "step", dying)
        with pytest.raises(InterruptedError):
            train_worker(broken, every)
    train_worker(broken, every)
    one, two = ([record["loss"] for record in read_log(job.run_uri)] for job in (whole, broken))
    assert one == two


def test_a_reference_that_is_gone_is_not_made_of_a_model_that_learned(make_preferred):
    job = make_preferred(steps=6)
    train_worker(job, TrainResources(checkpoint_every_steps=3))
    storage.delete_file(job.at(reference.NAME))
    storage.delete_file(job.at("done.json"))
    with pytest.raises(TrainingError, match="gone, and the model has learned since"):
        train_worker(job)


def test_votes_of_several_are_added_up(drawings, tmp_path):
    votes = [("d0-1", "d0-0"), ("d0-1", "d0-2"), ("d0-3", "d0-2"), ("d1-0", "d1-1"), ("d1-1", "d1-0")]
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps({"chosen": a, "rejected": b}) + "\n" for a, b in votes))
    table, num_undecided = pairs_of(read_table(str(drawings / "drawings.parquet")), [str(path)])
    assert [(row["chosen_id"], row["rejected_id"]) for row in table.to_pylist()] == [("d0-1", "d0-2")]
    assert num_undecided == 1, "two who say the opposite"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"chosen": "d0-0", "rejected": "x9"}', "line 1: names the unknown drawing 'x9'"),
        ('{"chosen": "d0-0", "rejected": "d1-0"}', "d0-0 and d1-0 are not of one prompt"),
        ('{"chosen": "d0-0"}', "line 1: is no vote"),
        ("[]", "is no vote"),
    ],
)
def test_a_vote_that_fits_nothing_is_named(make_preferred, tmp_path, line, words):
    path = tmp_path / "votes.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(TrainingError, match=words):
        make_preferred(votes=path)


def test_pairs_that_fit_no_pack_stop_it(make_preferred):
    job = make_preferred()
    data = job.config.data.model_copy(update={"context_tokens": 20, "pack_tokens": 20})
    job = TrainJob(job.config.model_copy(update={"data": data}), job.shard_uris, 64, job.run_uri, parent=job.parent)
    with pytest.raises(TrainingError, match="of 12 pairs none fits"):
        prepare(job)


def test_a_folder_without_drawings_says_who_makes_them(make_job, small_config, tmp_path):
    config = small_config().model_copy(update={"preferences": PreferenceConfig(samples=str(tmp_path), votes=["v"])})
    with pytest.raises(TrainingError, match="tokenmill prefer draw"):
        give_pairs(make_job(config=config))
