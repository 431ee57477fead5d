"""A stage goes on with the model of another: weights, words, more positions; what does not fit is said before."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tokenmill import storage
from tokenmill.storage.errors import TrainingError
from tokenmill.storage.run_log import read_log
from tokenmill.training.config import OptimizerConfig
from tokenmill.training.run.given import give_selected
from tokenmill.training.run.prepare import load_prepared, prepare
from tokenmill.training.run.worker import train_worker


@pytest.fixture(scope="module")
def first(shard_uris, small_config, tmp_path_factory):
    """A finished run."""
    from tokenmill.training.job import TrainJob

    job = TrainJob(small_config(steps=30, lr=1e-2), shard_uris, 64, str(tmp_path_factory.mktemp("first") / "v1-one"))
    train_worker(job)
    return job


def changed(config, **parts):
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=values) for name, values in parts.items()}
    )


def test_a_stage_starts_from_the_weights_of_the_one_before(make_job, first):
    config = changed(first.config, optimizer={"steps": 2, "lr": 1e-9}, data={"context_tokens": 96})
    job = make_job("v1-two", config, stage="two", parent=first.run_uri)
    train_worker(job)
    before, after = (load_file(f"{uri}/model/model.safetensors") for uri in (first.run_uri, job.run_uri))
    assert all(torch.allclose(tensor, after[name], atol=1e-6) for name, tensor in before.items())
    assert read_log(job.run_uri)[0]["loss"] == pytest.approx(read_log(first.run_uri)[-1]["loss"], abs=0.4)
    assert storage.read_json(f"{job.run_uri}/model/config.json")["max_position_embeddings"] == 96
    plan = storage.read_json(job.at("plan.json"))
    assert (plan["stage"], plan["ancestors"]) == ("two", [["v1-one", []]])
    third = make_job("v1-three", config, parent=job.run_uri)
    assert prepare(third)["ancestors"] == [("v1-two", ["v1-one"]), ("v1-one", [])]
    assert len({each.fingerprint for each in (job, third, make_job("other", config))}) == 3


def test_it_keeps_the_words_of_the_model(make_job, first, write_shard, token_row, tmp_path):
    """Also where its own captions would make other ones."""
    rng = np.random.default_rng(0)
    rows = [token_row(n, rng, caption="quite other words, quite often") for n in range(8)]
    uri = write_shard(tmp_path / "part-9.parquet", rows)
    job = make_job("v1-two", parent=first.run_uri, shard_uris=[uri])
    prepare(job)
    assert load_prepared(job).layout.tokenizer.get_vocab() == load_prepared(first).layout.tokenizer.get_vocab()


def test_codes_of_another_tokenizer_are_refused(make_job, first):
    job = make_job("v1-two", parent=first.run_uri)
    with pytest.raises(TrainingError, match=r"knows 64 codes, .* come from a tokenizer of 128; tokenize with"):
        prepare(replace(job, codebook_size=128))


def test_words_of_another_tokenizer_are_refused(make_job, first, small_config):
    other = make_job("other", changed(small_config(), data={"text_vocab_size": 266}))
    prepare(other)
    config = changed(first.config, data={"text_tokenizer": other.at("text")})
    with pytest.raises(TrainingError, match="have other ids than those of data.text_tokenizer"):
        prepare(make_job("v1-two", config, parent=first.run_uri))


def test_selected_media_alone_are_used(make_job, small_config, shard_uris):
    plain = make_job("plain")
    prepare(plain)
    some = [row["media_id"] for row in storage_rows(shard_uris) if row["kind"] == "image"][:7]
    config = changed(small_config(), data={"select": {"image": {"x": "aspect < 9"}, "video": {"x": "aspect < 9"}}})
    job = make_job("selected", config)
    give_selected(job, some)
    summary = prepare(job)
    assert (summary["num_documents"], summary["excluded"]["not_selected"]) == (7, 33)


def test_none_selected_says_so(make_job, small_config):
    job = make_job("nothing", changed(small_config(), data={"select": {"image": {"x": "aspect < 9"}}}))
    give_selected(job, [])
    with pytest.raises(TrainingError, match=r"no document to train on .*not_selected.*ease data.select"):
        prepare(job)


def test_a_mixture_counts_what_it_leaves_out(make_job, small_config):
    job = make_job("images", changed(small_config(), data={"mixture": {"image": 1.0}}))
    summary = prepare(job)
    assert (summary["num_videos"], summary["excluded"]["not_in_mixture"]) == (0, 10)


def test_loss_weights_of_tuning(make_job, small_config):
    """Only what is weighted is learned: captions stay unlearned where text counts nothing, and codes the reverse."""
    for weights, learned, not_learned in (((0.0, 1.0), "image", "text"), ((1.0, 0.0), "text", "image")):
        config = changed(small_config(steps=2), optimizer={"text_weight": weights[0], "vision_weight": weights[1]})
        job = make_job(f"weights-{learned}", config)
        train_worker(job)
        record = read_log(job.run_uri)[-1]
        assert learned in record and not_learned not in record


def storage_rows(uris):
    import pyarrow.parquet as pq

    return [row for uri in uris for row in pq.read_table(uri).to_pylist()]


def test_schedules_end_as_they_say():
    from tokenmill.training.model.optimizer import schedule

    def at(name, step):
        return schedule(OptimizerConfig(steps=10, warmup_steps=0, schedule=name), step, 10)

    assert [at("linear", step) for step in (0, 5, 10)] == [1, 0.5, 0]
    assert [at("constant", step) for step in (0, 5, 10)] == [1, 1, 1]
    assert [at("cosine", step) for step in (0, 5, 10)] == pytest.approx([1, 0.5, 0])
