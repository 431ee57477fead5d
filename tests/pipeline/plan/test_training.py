"""Which version of the tokens a training is of, which stages are trained, and from what."""

from pathlib import Path

import pytest

from tokenmill import storage
from tokenmill.pipeline.catalog import models
from tokenmill.pipeline.catalog.shard_files import SCHEMAS
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.plan.training import train_jobs
from tokenmill.training.job import DONE, PLAN, TrainJob, lineage

NUM_SHARDS = 20


def append(root: Path, number: int) -> None:
    row = {"media_id": f"{number:032x}", "kind": "image", "codes": [number], "fingerprint": "f", "run_id": "r"}
    catalog = Catalog(str(root))
    catalog.create()
    catalog.tokens.append(SCHEMAS["tokens"].empty_table().from_pylist([row], schema=SCHEMAS["tokens"]), {})


def job(root: Path, **changes: object) -> TrainJob:
    [made] = jobs(root, **changes)
    return made


def jobs(root: Path, **changes: object) -> list[TrainJob]:
    config = RunConfig(root=str(root), sources=[{"uri": str(root)}], **changes)
    return train_jobs(config, Catalog(str(root), config.version))


def finish(job: TrainJob) -> None:
    """As far as plans look at it."""
    ancestors = [] if job.parent is None else lineage(job.parent)
    storage.write_json(job.at(PLAN), {"inputs": job.inputs, "ancestors": ancestors})
    storage.write_json(job.at(DONE), {})


def compact(root: Path) -> None:
    assert Catalog(str(root)).tokens.compact(1 << 28, {}) == NUM_SHARDS - 1


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(NUM_SHARDS):
        append(tmp_path, number)
    return tmp_path


@pytest.mark.parametrize("mark", [PLAN, DONE])
def test_rows_in_fewer_files_are_not_trained_on_anew(root, mark):
    before = job(root)
    storage.write_json(before.at(mark), {})
    compact(root)
    after = job(root)
    assert (after.run_uri, after.fingerprint) == (before.run_uri, before.fingerprint)
    assert len(after.shard_uris) == NUM_SHARDS
    assert job(root, train={"seed": 1}).tokens_version == before.tokens_version + 1
    assert job(root, version=before.tokens_version + 1).tokens_version == before.tokens_version + 1
    append(root, NUM_SHARDS)
    assert job(root).tokens_version == before.tokens_version + 2


def test_what_was_begun_on_files_that_are_gone_is_begun_anew(root):
    before = job(root)
    storage.write_json(before.at(PLAN), {})
    compact(root)
    storage.delete_file(before.shard_uris[0])
    after = job(root)
    assert (after.tokens_version, len(after.shard_uris)) == (before.tokens_version + 1, 1)


STAGES = {"one": {"seed": 1}, "two": {"seed": 2}, "reads": {"seed": 3, "after": "one"}}


def told(made: list[TrainJob]) -> list[tuple[str | None, str | None]]:
    return [(each.stage, each.parent) for each in made]


def test_each_stage_starts_from_the_model_of_another(root):
    train = {"stages": STAGES}
    one, two, reads = jobs(root, train=train)
    assert told([one, two, reads]) == [("one", None), ("two", one.run_uri), ("reads", one.run_uri)]
    assert two.init_from == two.text_tokenizer == storage.join(one.run_uri, "model")
    assert len({job.fingerprint for job in (one, two, reads)}) == 3
    for job in (one, two):
        finish(job)
    config = RunConfig(root=str(root), sources=[{"uri": str(root)}], train=train)
    assert models.newest(str(root), config.train, "two") == two.run_uri
    assert models.newest(str(root), config.train) is None, "the last stage is not trained"
    assert [job.stage for job in jobs(root, train=train)] == ["one", "two", "reads"]


def test_a_stage_whose_start_changed_is_another(root):
    _, two, _ = jobs(root, train={"stages": STAGES})
    changed, after, _ = jobs(root, train={"stages": STAGES | {"one": {"seed": 9}}})
    assert after.run_uri != two.run_uri and after.config == two.config
    assert after.parent == changed.run_uri
    finish(changed)
    finish(after)
    first = RunConfig(root=str(root), sources=[{"uri": str(root)}], train={"stages": STAGES})
    assert models.newest(str(root), first.train, "two") is None


def test_one_stage_alone_needs_its_start(root):
    with pytest.raises(CatalogError, match="two starts from one, which is not trained on tokens version 20"):
        jobs(root, train={"stages": STAGES, "only": ["two"]})
    one, *_ = jobs(root, train={"stages": STAGES})
    assert [job.stage for job in jobs(root, train={"stages": STAGES, "only": ["one", "two"]})] == ["one", "two"]
    finish(one)
    assert told(jobs(root, train={"stages": STAGES, "only": ["two"]})) == [("two", one.run_uri)]


def test_a_stage_continues_its_own_model_with_new_data(root):
    train = {"stages": {"one": {}, "two": {"continues": True}}}
    for job in jobs(root, train=train):
        finish(job)
    before = jobs(root, train=train)[-1]
    append(root, NUM_SHARDS)
    [after] = jobs(root, train=train)
    assert (after.stage, after.parent) == ("two", before.run_uri), "and the first stage is not trained anew"
    finish(after)
    assert jobs(root, train=train)[-1].run_uri == after.run_uri, "what is finished stays"
    config = RunConfig(root=str(root), sources=[{"uri": str(root)}], train=train)
    assert models.newest(str(root), config.train) == after.run_uri


def test_without_stages_too(root):
    before = job(root, train={"continues": True})
    assert before.parent is None and job(root).run_uri == before.run_uri
    finish(before)
    append(root, NUM_SHARDS)
    assert job(root, train={"continues": True}).parent == before.run_uri
    assert job(root).parent is None


def test_the_model_of_another_config(root, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(f"root: {root}\nsources: [{{uri: x}}]\ntrain: {{seed: 4}}\n")
    train = {"model": {"init_from": str(other)}, "seed": 5}
    with pytest.raises(CatalogError, match=r"init_from: .*other.yaml has no trained model .* run `tokenmill run"):
        job(root, train=train)
    first = job(root, train={"seed": 4})
    finish(first)
    second = job(root, train=train)
    assert second.parent == first.run_uri
    finish(second)
    config = RunConfig(root=str(root), sources=[{"uri": str(root)}], train=train)
    assert models.newest(str(root), config.train) == second.run_uri
