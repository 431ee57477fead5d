"""Training from the tars of an export: the batches are those from the Parquet shards."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.export.webdataset import export_webdataset
from tokenmill.tokenizer import webdataset_shards
from tokenmill.tokenizer.sequence import Kind
from tokenmill.tokenizer.shards import TOKENS
from tokenmill.training.data.loader import Loader, RowGroups
from tokenmill.training.job import TrainJob
from tokenmill.training.pack import Pack
from tokenmill.training.run.prepare import load_prepared, prepare

NUM_ROWS = 600  # about 2 MiB of tar
NUM_TEXTS = 40


@pytest.fixture
def config(tmp_path: Path, token_row: Callable[..., dict[str, Any]], some_texts: Callable[..., Any]) -> RunConfig:
    """A catalog with two token shards, a rejected row and text documents among them."""
    made = RunConfig.model_validate({"root": str(tmp_path / "root"), "sources": [{"uri": "x"}]})
    catalog = Catalog(made.root)
    catalog.create()
    rng = np.random.default_rng(0)
    rows = [token_row(number, rng) for number in range(NUM_ROWS)]
    nothing = {"codes": None, "grid_t": None, "grid_h": None, "grid_w": None, "reject_reason": "unreadable"}
    texts = some_texts(NUM_TEXTS)
    texts[1] |= {"grid_t": None, "grid_h": None, "grid_w": None}
    rows = [*rows[:50], *texts[:30], *rows[50:], token_row(NUM_ROWS, rng, **nothing), *texts[30:]]
    for part in (rows[: NUM_ROWS // 2], rows[NUM_ROWS // 2 :]):
        catalog.tokens.append(pa.Table.from_pylist(part, schema=TOKENS), {})
    return made


@pytest.fixture
def jobs(config, make_job) -> Callable[..., tuple[TrainJob, TrainJob]]:
    """(out, compact=False) -> the job on the table's newest version, and that on its export under `out`."""

    def make(out: str, compact: bool = False) -> tuple[TrainJob, TrainJob]:
        export_webdataset(config, out, None, 1, compact, Console(quiet=True))
        tokens, export = Catalog(config.root).tokens, webdataset_shards.read_export(out)
        assert export.tokens_version == tokens.version
        of_table = make_job(f"table-{tokens.version}-{compact}", shard_uris=tokens.files())
        of_tars = make_job(
            f"tars-{tokens.version}-{compact}",
            shard_uris=export.shard_uris,
            export_id=export.id,
            removed=export.removed,
        )
        return of_table, of_tars

    return make


def packs(job: TrainJob) -> tuple[str, list[Pack]]:
    """Plan hash and all packs of a job."""
    plan = prepare(job)["plan"]
    ready = load_prepared(job)
    loader = Loader(ready.plan, ready.index, job.shard_uris, ready.layout, job.config.data.pack_tokens)
    return plan, [pack for _, step in loader.steps(0) for pack in step]


def assert_same_batches(one: TrainJob, two: TrainJob) -> None:
    (plan_one, packs_one), (plan_two, packs_two) = packs(one), packs(two)
    assert plan_one == plan_two
    assert len(packs_one) == len(packs_two) > 10
    assert {int(kind) for pack in packs_one for kind in pack.kinds} >= {Kind.IMAGE, Kind.DOCUMENT}
    for a, b in zip(packs_one, packs_two, strict=True):
        for name in ("ids", "kinds", "positions", "documents"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_batches_are_those_of_the_parquet_shards(jobs, tmp_path):
    of_table, of_tars = jobs(str(tmp_path / "out"))
    assert len(of_tars.shard_uris) > 1 and of_tars.removed == {}
    assert_same_batches(of_table, of_tars)


def test_thinned_and_repeated_text_is_the_same_from_both(jobs, tmp_path, small_config):
    small = small_config(steps=20)
    for share in (0.05, 0.5):
        config = small.model_copy(
            update={"data": small.data.model_copy(update={"mixture": {"text": share, "media": 1 - share}})}
        )
        both = jobs(str(tmp_path / "out"))
        assert_same_batches(
            *(dataclasses.replace(job, config=config, run_uri=f"{job.run_uri}-{share}") for job in both)
        )


def test_text_alone_trains_from_tars(config, jobs, tmp_path):
    """No code is read: there is none."""
    Catalog(config.root).tokens.edit(pc.field("kind") != "text", None, {})
    of_table, of_tars = jobs(str(tmp_path / "out"))
    (plan_one, packs_one), (plan_two, packs_two) = packs(of_table), packs(of_tars)
    assert plan_one == plan_two
    for a, b in zip(packs_one, packs_two, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)


def test_removed_and_changed_samples_are_not_trained_on(jobs, config, tmp_path, token_row, some_texts):
    jobs(str(tmp_path / "out"))
    tokens = Catalog(config.root).tokens
    rng = np.random.default_rng(1)
    texts = some_texts(3)
    ids = [row["media_id"] for row in (*(token_row(number, rng) for number in range(6)), *texts)]
    another = [*(token_row(number, rng, caption="another") for number in range(3)), texts[0] | {"caption": "new words"}]
    changed = pa.Table.from_pylist(another, schema=TOKENS)
    tokens.edit(pc.field("media_id").isin(ids), None, {}, append=changed)
    of_table, of_tars = jobs(str(tmp_path / "out"))
    assert sorted(key for keys in of_tars.removed.values() for key in keys) == sorted(ids)
    assert_same_batches(of_table, of_tars)
    of_table, compacted = jobs(str(tmp_path / "out"), compact=True)
    assert compacted.removed == {} and compacted.fingerprint != of_tars.fingerprint
    assert_same_batches(of_table, compacted)
    with pytest.raises(FileNotFoundError, match=r"shard-00000\d"):
        packs(of_tars)


def test_a_copy_without_the_parquet_files_trains(jobs, tmp_path):
    of_table, of_tars = jobs(str(tmp_path / "out"))
    for path in (tmp_path / "out").glob("*.parquet"):
        path.unlink()
    assert webdataset_shards.read_export(str(tmp_path / "out")).shard_uris == of_tars.shard_uris
    assert_same_batches(of_table, of_tars)


def test_tars_on_an_object_store(jobs, s3):
    assert_same_batches(*jobs(f"{s3}/out"))


def test_codes_come_by_range(jobs, tmp_path, monkeypatch, token_row, some_texts):
    """Row groups of the members are stretches of the tar, each read once."""
    monkeypatch.setattr(webdataset_shards, "_GROUP_BYTES", 1 << 16)
    _, of_tars = jobs(str(tmp_path / "out"))
    read: list[int] = []
    real = webdataset_shards.read_codes

    def count(uri: str, members: pa.Table) -> pa.ListArray:
        codes = real(uri, members)
        read.append(len(codes))
        return codes

    monkeypatch.setattr(webdataset_shards, "read_codes", count)
    groups = RowGroups(of_tars.shard_uris, 1 << 30)
    first = [groups.get(0, number) for number in range(4)]
    assert len(read) == 4
    assert max(read) <= (1 << 16) // 2048 + 1, "a sample takes 2 KiB or more"
    codes = {row["media_id"]: row["codes"] for table in first for row in table.to_pylist()}
    rng = np.random.default_rng(0)
    rows = [*(token_row(number, rng) for number in range(NUM_ROWS)), *some_texts(NUM_TEXTS)]
    expected = {row["media_id"]: row["codes"] for row in rows}
    assert codes and all(expected[media_id] == found for media_id, found in codes.items())


def test_another_export_under_the_same_names_is_noticed(jobs, config, tmp_path):
    _, of_tars = jobs(str(tmp_path / "out"))
    packs(of_tars)
    tokens = Catalog(config.root).tokens
    tokens.edit(pc.field("kind") == "video", None, {})
    storage.delete_folder(str(tmp_path / "out"))
    _, again = jobs(str(tmp_path / "out"))
    assert again.fingerprint != of_tars.fingerprint
    with pytest.raises(ValueError, match="not what was planned"):
        packs(of_tars)
