"""Damaged files of a training and of its model: whatever reads one works, or says in one line which file it is."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import fuzzing
from tokenmill.storage.run_log import read_log
from tokenmill.training.checkpoints import folders
from tokenmill.training.config import TrainConfig
from tokenmill.training.data.index import usable_rows
from tokenmill.training.data.loader import RowGroups
from tokenmill.training.job import TrainJob, read_result
from tokenmill.training.resources import TrainResources
from tokenmill.training.run.prepare import load_prepared
from tokenmill.training.run.worker import _Trainer, train_worker
from tokenmill.training.sampling import Sampler

pytestmark = pytest.mark.hostile

RESOURCES = TrainResources(checkpoint_every_steps=4)


def job_in(folder: Path, config: TrainConfig) -> TrainJob:
    return TrainJob(
        config,
        shard_uris=[str(path) for path in sorted((folder / "tokens").glob("*.parquet"))],
        codebook_size=64,
        run_uri=str(folder / "run"),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shard_uris, small_config) -> Path:
    """A folder with token shards and a finished training on them."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(Path(shard_uris[0]).parent, folder / "tokens")
    train_worker(job_in(folder, small_config(steps=4)), RESOURCES)
    return folder


def resume(job: TrainJob) -> None:
    import torch

    _Trainer(job, RESOURCES, load_prepared(job), 0, 1, torch.device("cpu"))


def read_shard(job: TrainJob) -> None:
    for _, rows, _ in usable_rows(job.shard_uris[0], None):
        rows.to_pylist()
    groups = RowGroups(job.shard_uris, 1 << 20)
    groups.get(0, 0).to_pylist()


STEP = "run/checkpoints/step_000004"
# File: what reads it, and how many inputs there are at most, by how long that takes.
READERS: dict[str, tuple[Callable[[TrainJob], object], int]] = {
    "tokens/part-0.parquet": (read_shard, 10_000),
    "run/plan.json": (load_prepared, 500),
    "run/index.parquet": (load_prepared, 500),
    "run/plan.parquet": (load_prepared, 500),
    "run/text/vocabulary.json": (load_prepared, 500),
    "run/text/tokenizer.json": (load_prepared, 500),
    "run/text/tokenizer_config.json": (load_prepared, 500),
    "run/done.json": (read_result, 20_000),
    "run/log.jsonl": (lambda job: read_log(job.run_uri, "seconds"), 20_000),
    f"{STEP}/meta.json": (lambda job: folders.latest(job.run_uri, "x" * 16), 20_000),
    f"{STEP}/shard-00001-model-00001-of-00001.safetensors": (resume, 200),
    f"{STEP}/tensors.json": (resume, 200),
    f"{STEP}/checksums.json": (resume, 200),
    "run/model/vocabulary.json": (lambda job: Sampler.load(job.run_uri), 200),
    "run/model/config.json": (lambda job: Sampler.load(job.run_uri), 200),
    "run/model/model.safetensors": (lambda job: Sampler.load(job.run_uri), 200),
}


@pytest.mark.parametrize(
    ("name", "num_inputs"),
    [
        pytest.param(name, *number.values, marks=number.marks, id=f"{name}-{number.id}")
        for name, (_, many) in READERS.items()
        for number in fuzzing.count(many, few=min(300, many // 10))
    ],
)
def test_a_damaged_file_of_a_training_is_said(ram_path, trained, small_config, name, num_inputs):
    folder = Path(shutil.copytree(trained, ram_path / "trained"))
    job = job_in(folder, small_config(steps=4))
    assert fuzzing.check_reader(name, folder / name, num_inputs, lambda: READERS[name][0](job))
