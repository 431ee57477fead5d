"""Which version of the tokens a training is of."""

from pathlib import Path

import pytest

from tokenmill import storage
from tokenmill.pipeline.catalog.shard_files import SCHEMAS
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.plan.training import train_job
from tokenmill.training.job import DONE, PLAN, TrainJob

NUM_SHARDS = 20


def append(root: Path, number: int) -> None:
    row = {"media_id": f"{number:032x}", "kind": "image", "codes": [number], "fingerprint": "f", "run_id": "r"}
    catalog = Catalog(str(root))
    catalog.create()
    catalog.tokens.append(SCHEMAS["tokens"].empty_table().from_pylist([row], schema=SCHEMAS["tokens"]), {})


def job(root: Path, **changes: object) -> TrainJob:
    config = RunConfig(root=str(root), sources=[{"uri": str(root)}], **changes)
    return train_job(config, Catalog(str(root), config.version))


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
