"""Export of token rows as tars: what plain readers see, equal bytes, additions, removals, a killed export, S3."""

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import webdataset
import wids
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.export import webdataset as module
from tokenmill.pipeline.run import train as phase
from tokenmill.pipeline.run.run import Run
from tokenmill.storage import uris
from tokenmill.tokenizer import webdataset_shards
from tokenmill.tokenizer.shards import TOKENS
from tokenmill.training.job import TrainJob, TrainResult

SHARD_MB = 1
QUIET = Console(quiet=True)


def token_rows(numbers: range, **changes: Any) -> pa.Table:
    """Rows with a grid of 1x90x90 or 2x45x90; every third without a caption; ids in no order."""
    rows = []
    for number in numbers:
        rng = np.random.default_rng(number)
        is_video = number % 4 == 3
        row = {
            "media_id": hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest(),
            "kind": "video" if is_video else "image",
            "codes": rng.integers(0, 1 << 15, 8100).astype(np.uint16),
            "grid_t": 2 if is_video else 1,
            "grid_h": 45 if is_video else 90,
            "grid_w": 90,
            "fps": 8.0 if is_video else None,
            "frames_trimmed": number % 4,
            "caption": f'number {number}, "ünd" 数' if number % 3 else None,
            "reject_reason": None,
            "fingerprint": "f" * 16,
            "run_id": "test",
        }
        rows.append(row | changes)
    return pa.Table.from_pylist(rows, schema=TOKENS)


def text_rows(numbers: range, **changes: Any) -> pa.Table:
    """Text documents; every third with a grid of nulls instead of zeros."""
    rows = []
    for number in numbers:
        row = {
            "media_id": hashlib.blake2b(f"text {number}".encode(), digest_size=16).hexdigest(),
            "kind": "text",
            "codes": [],
            "caption": f"Document {number}: " + "ünd 数\n" * (number * 40),
            "fingerprint": "f" * 16,
            "run_id": "test",
        }
        grid = {} if number % 3 == 2 else {"grid_t": 0, "grid_h": 0, "grid_w": 0}
        rows.append(row | grid | changes)
    return pa.Table.from_pylist(rows, schema=TOKENS)


def rejected(numbers: range) -> pa.Table:
    nothing = {"codes": None, "grid_t": None, "grid_h": None, "grid_w": None, "caption": None}
    return token_rows(numbers, reject_reason="unreadable", **nothing)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., RunConfig]:
    """(rows of one shard each, root=...) -> the config of a catalog with these token rows."""

    def config(*shards: pa.Table, root: str = "root") -> RunConfig:
        made = RunConfig.model_validate(
            {"root": root if "://" in root else str(tmp_path / root), "sources": [{"uri": "x"}]}
        )
        catalog = Catalog(made.root)
        catalog.create()
        for rows in shards:
            catalog.tokens.append(rows, {})
        return made

    return config


def export(config: RunConfig, out: Path | str, version: int | None = None, compact: bool = False) -> dict[str, Any]:
    module.export_webdataset(config, str(out), version, SHARD_MB, compact, QUIET)
    return storage.read_json(storage.join(str(out), webdataset_shards.DOCUMENT))


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def read_plain(out: Path) -> dict[str, dict[str, Any]]:
    """What webdataset finds behind the wids index, less what tokenmill.json calls removed."""
    removed = json.loads((out / webdataset_shards.DOCUMENT).read_text())["removed"]
    found: dict[str, dict[str, Any]] = {}
    for shard in json.loads((out / module.WIDS_INDEX).read_text())["shardlist"]:
        path = out / shard["url"]
        samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
        assert len(samples) == shard["nsamples"]
        assert path.stat().st_size == shard["filesize"]
        assert hashlib.md5(path.read_bytes()).hexdigest() == shard["md5sum"]
        for sample in samples:
            if sample["__key__"] not in removed.get(shard["url"], []):
                assert sample["__key__"] not in found
                found[sample["__key__"]] = sample
    return found


def assert_same(found: dict[str, dict[str, Any]], rows: pa.Table) -> None:
    expected = {row["media_id"]: row for row in rows.to_pylist()}
    assert set(found) == set(expected)
    for key, row in expected.items():
        codes, document = found[key]["codes.npy"], found[key]["json"]
        assert codes.dtype == np.uint16
        assert codes.shape == (row["grid_t"], row["grid_h"], row["grid_w"]) == tuple(document.pop("grid"))
        np.testing.assert_array_equal(codes.ravel(), row["codes"])
        assert document == {name: row[name] for name in document}
        assert set(document) == {"media_id", "kind", "fps", "caption", "fingerprint", "frames_trimmed"}
        assert found[key].get("txt") == row["caption"]


def test_wids_opens_the_index_at_any_position(make, tmp_path):
    """Random access by number, through the index alone; in the order of media_id."""
    rows = token_rows(range(150))
    export(make(rows), tmp_path / "out")
    index = str(tmp_path / "out" / module.WIDS_INDEX)
    dataset = wids.ShardListDataset(index, cache_dir=str(tmp_path / "cache"), keep=True)
    assert len(dataset) == 150 and len(json.loads(Path(index).read_text())["shardlist"]) > 1
    expected = sorted(rows.to_pylist(), key=lambda row: row["media_id"])
    for number in (149, 0, 77, 76, 148):
        sample, row = dataset[number], expected[number]
        assert sample["__key__"] == row["media_id"]
        np.testing.assert_array_equal(sample[".codes.npy"].ravel(), row["codes"])
        assert sample[".json"]["caption"] == row["caption"]


def test_plain_webdataset_reads_every_kept_row(make, tmp_path):
    rows = token_rows(range(120))
    document = export(make(rows.slice(0, 70), rows.slice(70), rejected(range(120, 125))), tmp_path / "out")
    assert len(document["shards"]) > 1
    assert all(shard["size_bytes"] <= SHARD_MB << 20 for shard in document["shards"])
    assert document["tokens_version"] == 3
    assert_same(read_plain(tmp_path / "out"), rows)


def test_text_documents_are_json_and_txt_alone(make, tmp_path):
    """Beside media that stand in the tars as they do without them; a text that changes is another sample."""
    media, texts = token_rows(range(30)), text_rows(range(12))
    config = make(media, texts)
    document = export(config, tmp_path / "out")
    assert document["num_samples"] == 42
    found = read_plain(tmp_path / "out")
    for row in texts.to_pylist():
        sample = found.pop(row["media_id"])
        assert {name for name in sample if not name.startswith("__")} == {"json", "txt"}
        assert sample["txt"] == row["caption"]
        assert sample["json"] == {name: row[name] for name in ("media_id", "kind", "fingerprint")}
    assert_same(found, media)
    for shard in document["shards"]:
        members, _ = webdataset_shards.read_members(str(tmp_path / "out" / shard["name"]))
        rows = members.filter(pc.equal(members["kind"], "text")).to_pylist()
        assert all((row["grid_t"], row["grid_h"], row["grid_w"]) == (0, 0, 0) for row in rows)
        assert all(row["codes_offset"] == row["offset"] for row in rows)

    Catalog(config.root).tokens.edit(
        pc.field("media_id") == texts["media_id"][4], None, {}, append=text_rows(range(4, 5), caption="other words")
    )
    changed = export(config, tmp_path / "out")
    assert changed["removed"] == {"shard-000000.tar": [texts["media_id"][4].as_py()]}
    assert read_plain(tmp_path / "out")[texts["media_id"][4].as_py()]["txt"] == "other words"
    assert changed["shards"][-1]["num_samples"] == 1


def test_any_tar_reader_reads_it_in_order_of_ids(make, tmp_path):
    document = export(make(token_rows(range(120))), tmp_path / "out")
    keys = []
    for shard in document["shards"]:
        with tarfile.open(tmp_path / "out" / shard["name"]) as tar:
            members = tar.getmembers()
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
        mine = list(dict.fromkeys(member.name.split(".")[0] for member in members))
        assert (mine[0], mine[-1], len(mine)) == (shard["first_key"], shard["last_key"], shard["num_samples"])
        keys += mine
    assert keys == sorted(keys)


def test_the_bytes_are_those_of_all_releases(make, tmp_path):
    """Exports of before are brought up to date, not written anew; tarfile agrees with every byte."""
    codes = (np.arange(8100) * 17 % (1 << 15)).astype(np.uint16)
    export(make(token_rows(range(8), codes=codes), text_rows(range(4))), tmp_path / "out")
    tar = (tmp_path / "out" / "shard-000000.tar").read_bytes()
    assert hashlib.sha256(tar).hexdigest() == "bd255fc2fd846c6a3f61c6f96af6fb0af64d583fdadff9a4a34d5579f440ec27"
    again = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(tar)) as old, tarfile.open(fileobj=again, mode="w") as new:
        for member in old.getmembers():
            plain = tarfile.TarInfo(member.name)
            plain.size = member.size
            new.addfile(plain, old.extractfile(member))
    assert again.getvalue() == tar


def test_members_left_behind_are_made_from_the_tars(make, tmp_path):
    """As they were, whoever needs them next; of text documents, too."""
    config = make(token_rows(range(120)), text_rows(range(12)))
    out = tmp_path / "out"
    export(config, out)
    before = contents(out)
    for use in (lambda: webdataset_shards.read_export(str(out)), lambda: export(config, out)):
        for path in out.glob("*.parquet"):
            path.unlink()
        use()
        assert contents(out) == before


@pytest.mark.parametrize("damage", ["gone", "cut", "overwritten"])
def test_a_damaged_tar_gives_no_members(make, tmp_path, damage):
    config, out = make(token_rows(range(8))), tmp_path / "out"
    export(config, out)
    (out / "shard-000000.parquet").unlink()
    tar = out / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    tar.unlink()
    if damage != "gone":
        data[20_000:] = b"" if damage == "cut" else b"x" + data[20_001:]
        tar.write_bytes(data)
    with pytest.raises(webdataset_shards.ExportError, match=r"shard-000000\.tar: gone or damaged.*a new folder"):
        webdataset_shards.read_export(str(out))
    with pytest.raises(CatalogError, match="damaged"):
        export(config, out)
    assert not (out / "shard-000000.parquet").exists()


def test_equal_rows_give_equal_bytes_however_the_table_is_cut(make, tmp_path, monkeypatch):
    rows = token_rows(range(120))
    one = export(make(rows, root="one"), tmp_path / "a")
    shuffled = rows.take(np.random.default_rng(0).permutation(120))
    monkeypatch.setattr(module, "_WAVE_BYTES", 1)  # one shard at a time
    export(make(shuffled, root="two"), tmp_path / "b")
    assert len(one["shards"]) > 1
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_members_say_where_codes_stand(make, tmp_path):
    rows = token_rows(range(40))
    document = export(make(rows), tmp_path / "out")
    codes = dict(zip(rows["media_id"].to_pylist(), rows["codes"].to_pylist(), strict=True))
    for shard in document["shards"]:
        data = (tmp_path / "out" / shard["name"]).read_bytes()
        members, md5sum = webdataset_shards.read_members(str(tmp_path / "out" / shard["name"]))
        assert md5sum == shard["md5sum"]
        for member in members.to_pylist():
            found = np.frombuffer(data, "<u2", 8100, member["codes_offset"])
            np.testing.assert_array_equal(found, codes[member["media_id"]])


def test_a_newer_version_adds_and_removes(make, tmp_path):
    config = make(token_rows(range(120)))
    tokens = Catalog(config.root).tokens
    out = tmp_path / "out"
    first = export(config, out)
    before = contents(out)
    assert export(config, out) == first
    assert contents(out) == before, "an export of the same version changed something"

    gone, changed = token_rows(range(3)), token_rows(range(3, 5), caption="another")
    tokens.edit(pc.field("media_id").isin(gone["media_id"].combine_chunks()), None, {})
    tokens.edit(pc.field("media_id").isin(changed["media_id"].combine_chunks()), None, {}, append=changed)
    tokens.append(token_rows(range(120, 140)), {})
    now = pa.concat_tables([changed, token_rows(range(5, 140))])
    second = export(config, out)
    assert second["shards"][: len(first["shards"])] == first["shards"]
    assert sum(shard["num_samples"] for shard in second["shards"][len(first["shards"]) :]) == 22
    expected = set(gone["media_id"].to_pylist()) | set(changed["media_id"].to_pylist())
    assert {key for keys in second["removed"].values() for key in keys} == expected
    assert sum(map(len, second["removed"].values())) == 5
    assert_same(read_plain(out), now)
    assert all(contents(out)[name] == data for name, data in before.items() if name.startswith("shard"))

    third = export(config, out, compact=True)
    assert third["removed"] == {}
    untouched = {shard["name"] for shard in first["shards"]} - set(second["removed"])
    assert untouched, "every shard held a removed sample, so the test says nothing of the others"
    assert untouched <= {shard["name"] for shard in third["shards"]}
    assert not set(second["removed"]) & set(contents(out)), "shards that were compacted away are still there"
    assert sum(shard["num_samples"] for shard in third["shards"]) == len(now)
    assert_same(read_plain(out), now)

    export(config, out, version=1)
    assert_same(read_plain(out), token_rows(range(120)))


def test_a_sample_that_comes_back_is_not_written_again(make, tmp_path):
    config = make(token_rows(range(10)))
    tokens = Catalog(config.root).tokens
    tokens.edit(pc.field("media_id") == token_rows(range(1))["media_id"][0], None, {})
    one = export(config, tmp_path / "out", version=1)
    assert sum(map(len, export(config, tmp_path / "out")["removed"].values())) == 1
    assert export(config, tmp_path / "out", version=1) == one


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 6, 7, 8])
def test_a_killed_export_is_completed_with_the_same_bytes(make, tmp_path, monkeypatch, writes):
    config = make(token_rows(range(120)))
    export(config, tmp_path / "whole")
    real, done, rewritten = storage.write_bytes, [], []

    def write_and_die(uri: str, data: bytes) -> None:
        if len(done) >= writes:
            raise KeyboardInterrupt
        done.append(uri)
        real(uri, data)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_THREADS", 1)
        for module_of_it in (storage, uris):
            patch.setattr(module_of_it, "write_bytes", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            export(config, out)
    with monkeypatch.context() as patch:
        for module_of_it in (storage, uris):
            patch.setattr(module_of_it, "write_bytes", lambda uri, data: (rewritten.append(uri), real(uri, data)))
        export(config, out)
    assert contents(out) == contents(tmp_path / "whole")
    finished = {uri for uri in done if uri.endswith(".tar") and webdataset_shards.members_uri(uri) in done}
    assert not finished & set(rewritten), "whole shards were written again"


def test_a_killed_export_of_another_plan_leaves_nothing(make, tmp_path, monkeypatch):
    config = make(token_rows(range(120)))
    whole = tmp_path / "whole"
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_wids", lambda shards: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export(config, out)
    (out / ".shard-000001.tar.4321").write_bytes(b"half a t")
    for folder in (whole, out):
        module.export_webdataset(config, str(folder), None, 2, False, QUIET)
    assert contents(out) == contents(whole)


def test_an_unfinished_export_says_so(make, tmp_path, monkeypatch):
    config = make(token_rows(range(4)))
    monkeypatch.setattr(module, "_wids", lambda shards: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export(config, tmp_path / "out")
    with pytest.raises(webdataset_shards.ExportError, match=r"tokenmill\.json.*run the same"):
        webdataset_shards.read_export(str(tmp_path / "out"))


def test_on_an_object_store_all_is_the_same(make, tmp_path, s3):
    rows = token_rows(range(80))
    config, remote = make(rows), make(rows, root=f"{s3}/root")
    export(config, tmp_path / "out")
    export(remote, f"{s3}/exports/one")
    names = storage.list_names(f"{s3}/exports/one")
    assert {name: storage.read_bytes(f"{s3}/exports/one/{name}") for name in names} == contents(tmp_path / "out")
    for name in names:
        if name.endswith(".parquet"):
            storage.delete_file(f"{s3}/exports/one/{name}")
    webdataset_shards.read_export(f"{s3}/exports/one")
    assert storage.list_names(f"{s3}/exports/one") == names
    Catalog(remote.root).tokens.append(token_rows(range(80, 90)), {})
    assert export(remote, f"{s3}/exports/one")["num_samples"] == 90


def test_an_export_is_emptied_with_its_table(make, tmp_path):
    config = make(token_rows(range(8)))
    export(config, tmp_path / "out")
    Catalog(config.root).tokens.edit(pc.field("kind").is_valid(), None, {})
    document = export(config, tmp_path / "out", compact=True)
    assert (document["num_samples"], document["shards"], document["removed"]) == (0, [], {})
    assert set(contents(tmp_path / "out")) == {webdataset_shards.DOCUMENT, module.WIDS_INDEX}


def train_by(fit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this function stand for the training itself, and Ray unstarted."""
    monkeypatch.setitem(sys.modules, "tokenmill.training.run.loop", SimpleNamespace(fit=fit))
    monkeypatch.setattr("tokenmill.pipeline.run.workers.Workers.start_ray", lambda _: None)


def trained(config: RunConfig, console: Console) -> None:
    run = Run(config, console, "train")
    run.foresee(("train",))
    phase.train(run)


def test_training_takes_the_shards_of_an_export(make, tmp_path, monkeypatch):
    """`train.shards` gives the job the tars, the version and the folder of that export."""
    config = make(token_rows(range(8)))
    Catalog(config.root).tokens.append(token_rows(range(8, 10)), {})
    export(config, tmp_path / "out", version=1)
    found = webdataset_shards.read_export(str(tmp_path / "out"))
    jobs: list[TrainJob] = []

    class EnoughError(Exception):
        pass

    def fit(job: TrainJob, *_: Any) -> None:
        jobs.append(job)
        raise EnoughError

    train_by(fit, monkeypatch)
    part = config.train.model_copy(update={"shards": str(tmp_path / "out")})
    for each in (config, config.model_copy(update={"train": part})):
        with pytest.raises(EnoughError):
            trained(each, QUIET)
    of_table, of_tars = jobs
    assert (of_table.tokens_version, of_tars.tokens_version) == (2, 1)
    assert of_table.export_id is None and of_table.run_uri != of_tars.run_uri
    assert of_tars.shard_uris == [str(tmp_path / "out" / "shard-000000.tar")] == found.shard_uris
    assert (of_tars.export_id, of_tars.removed) == (found.id, {})

    for changes, message in (
        ({"version": 2}, "holds tokens version 1, not 2.*--version"),
        ({"train": part.model_copy(update={"shards": str(tmp_path)})}, r"train\.shards: .*tokenmill\.json: not there"),
    ):
        with pytest.raises(CatalogError, match=message):
            trained(config.model_copy(update={"train": part} | changes), QUIET)


def test_the_closing_note_counts_text_documents(make, monkeypatch, capsys):
    config = make(token_rows(range(4)), text_rows(range(3)))

    def fit(job: TrainJob, *_: Any) -> TrainResult:
        figures = {"num_steps": 5, "num_documents": 11, "num_tokens": 2_000, "excluded": {}, "fill": 1.0}
        texts = {"num_texts": 3, "num_text_pieces": 7, "num_text_tokens": 500}
        return TrainResult(
            job.run_uri,
            job.run_uri,
            "plan",
            2,
            losses={"document": 1.5},
            seconds=1.0,
            resumed_from=0,
            **figures,
            **texts,
        )

    train_by(fit, monkeypatch)
    monkeypatch.setattr(phase, "draw_curves", lambda *_: None)
    trained(config, Console(width=200))
    shown = capsys.readouterr().out
    assert "11 documents; document 1.500" in shown
    assert "text: 3 documents in 7 pieces of at most 5120 tokens, 25.0% of the tokens trained on" in shown


def test_errors_say_what_to_do(make, tmp_path):
    empty = make(rejected(range(3)), root="empty")
    with pytest.raises(CatalogError, match="no kept row.*tokenmill tokenize"):
        export(empty, tmp_path / "out")
    config = make(token_rows(range(3)))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "shard-000000.tar").write_bytes(b"somebody's")
    with pytest.raises(CatalogError, match="foreign.*not ours"):
        export(config, tmp_path / "foreign")
    assert (tmp_path / "foreign" / "shard-000000.tar").read_bytes() == b"somebody's"
    with pytest.raises(CatalogError, match="no version 9"):
        export(config, tmp_path / "out", version=9)
    Catalog(config.root).tokens.append(token_rows(range(1), fingerprint="0" * 16), {})
    with pytest.raises(CatalogError, match="two tokenizers"):
        export(config, tmp_path / "out")
    damaged = make(token_rows(range(1), grid_h=7), root="damaged")
    with pytest.raises(CatalogError, match=r"8100 codes in a grid of \(1, 7, 90\)"):
        export(damaged, tmp_path / "out2")
