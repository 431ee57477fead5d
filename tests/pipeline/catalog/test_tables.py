"""Catalog: atomic versions, copy-on-write edits, time travel, clear errors."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from tokenmill.pipeline.catalog.log.calls import asked
from tokenmill.pipeline.catalog.shard_files import write_shard
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.stages.table.columns import SOURCES
from tokenmill.storage.errors import DamagedError
from tokenmill.tokenizer.shards import TOKENS


def source_rows(uris: list[str], status: str = "present") -> pa.Table:
    count = len(uris)
    columns = {
        "uri": uris,
        "etag": ["e"] * count,
        "size_bytes": [1] * count,
        "status": [status] * count,
        "file_id": [f"id-{uri}" for uri in uris],
        "fingerprint": ["f"] * count,
        "last_seen_run": ["r"] * count,
    }
    return pa.table({name: columns.get(name, [None] * count) for name in SOURCES.names}, schema=SOURCES)


def token_rows(count: int, codes_each: int = 64, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    columns = {name: [None] * count for name in TOKENS.names} | {
        "media_id": [f"{seed:016x}{i:016x}" for i in range(count)],
        "kind": ["image"] * count,
        "codes": [rng.integers(0, 65536, codes_each).astype(np.uint16) for _ in range(count)],
        "caption": [f"caption {i}" for i in range(count)],
        "fingerprint": ["f"] * count,
        "run_id": ["r"] * count,
    }
    return pa.table(columns, schema=TOKENS)


@pytest.fixture
def catalog(tmp_path) -> Catalog:
    made = Catalog(str(tmp_path / "a root with spaces, ünd mehr"))
    made.create()
    return made


def test_rows_are_visible_only_once_committed(catalog):
    shard = write_shard(catalog.root, "sources", source_rows(["a", "b"]))
    assert catalog.sources.count() == 0
    catalog.sources.commit([shard], [], {"why": "test"})
    assert catalog.sources.scan(["uri"])["uri"].to_pylist() == ["a", "b"]
    assert catalog.sources.history()[0]["why"] == "test"


def test_edit_replaces_drops_and_adds_in_one_version(catalog):
    catalog.sources.append(source_rows(["a", "b"]), {})
    catalog.sources.append(source_rows(["c"]), {})
    before, untouched = catalog.sources.version, catalog.sources.files()
    hits = catalog.sources.edit(pc.field("uri") == "b", None, {}, append=source_rows(["b"], "gone"))
    assert hits == 1
    assert catalog.sources.version == before + 1
    rows = {row["uri"]: row["status"] for row in catalog.sources.scan().to_pylist()}
    assert rows == {"a": "present", "b": "gone", "c": "present"}
    assert set(untouched) & set(catalog.sources.files()), "the file without a match was rewritten"
    assert catalog.sources.scan(["uri"], version=before).num_rows == 3
    assert catalog.sources.edit(pc.field("uri") == "nowhere", None, {}) == 0
    assert catalog.sources.version == before + 1, "an edit without a match made a version"


def test_edit_drops_only_rows_that_match_and_keeps_nulls(catalog):
    catalog.sources.append(source_rows(["a", "b"]), {})
    catalog.sources.edit(pc.field("caption_etag") == "x", None, {})
    assert catalog.sources.count() == 2


def test_codes_survive_an_edit_with_their_type_and_encoding(catalog):
    rows = token_rows(8)
    catalog.tokens.append(rows, {})
    catalog.tokens.edit(pc.field("caption") == "caption 3", None, {})
    (file,) = catalog.tokens.files()
    written = pq.read_table(file)
    assert written.schema.field("codes").type == pa.list_(pa.uint16())
    expected = [codes for i, codes in enumerate(rows["codes"].to_pylist()) if i != 3]
    assert written["codes"].to_pylist() == expected
    column = [pq.ParquetFile(file).metadata.row_group(0).column(i) for i in range(len(TOKENS))]
    codes = next(c for c in column if c.path_in_schema.startswith("codes"))
    assert "BYTE_STREAM_SPLIT" in codes.encodings
    assert codes.compression == "ZSTD"


def test_any_delta_reader_reads_the_codes(catalog):
    rows = token_rows(5)
    catalog.tokens.append(rows, {})
    read = DeltaTable(catalog.tokens.uri).to_pyarrow_table(columns=["media_id", "codes"])
    assert read["codes"].to_pylist() == rows["codes"].to_pylist()


def test_codes_take_less_than_two_bytes(catalog):
    rng = np.random.default_rng(0)
    rows = token_rows(1)
    codes = pa.array([rng.integers(0, 32768, 4096).astype(np.uint16) for _ in range(200)], pa.list_(pa.uint16()))
    table = pa.concat_tables([rows] * 200).set_column(rows.schema.get_field_index("codes"), "codes", codes)
    shard = write_shard(catalog.root, "tokens", table)
    assert shard.size_bytes / (200 * 4096) < 1.95


def test_a_long_log_still_opens(catalog):
    for i in range(12):
        catalog.sources.append(source_rows([f"u{i}"]), {})
    assert Catalog(catalog.root).sources.count() == 12


def test_errors_name_the_place(tmp_path):
    with pytest.raises(CatalogError, match="no table there.*tokenmill run"):
        _ = Catalog(str(tmp_path)).media.version
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(CatalogError, match="file"):
        Catalog(str(blocked)).create()


def test_a_panic_of_delta_is_an_error():
    panic = type("PanicException", (BaseException,), {})

    def panics() -> None:
        raise panic("attempt to divide by zero")

    with pytest.raises(DeltaError, match="divide by zero"):
        asked("/root/media", panics)
    with pytest.raises(KeyboardInterrupt):
        asked("/root/media", lambda: (_ for _ in ()).throw(KeyboardInterrupt()))


def test_a_damaged_commit_is_said_by_history(catalog):
    catalog.sources.append(source_rows(["a"]), {})
    (log,) = Path(catalog.sources.uri, "_delta_log").glob("*1.json")
    log.write_text("{}")
    with pytest.raises(CatalogError, match="its log cannot be read.*verify CONFIG --repair"):
        Catalog(catalog.root).sources.history()
    log.write_text("x")
    with pytest.raises(CatalogError, match="cannot be opened: .*; check its address"):
        _ = Catalog(catalog.root).sources.delta


def test_text_that_is_no_utf8_is_damage(catalog):
    catalog.sources.append(source_rows(["a"]), {})
    name = "part-" + "0" * 32 + ".parquet"  # as an older release wrote it, without a digest
    rows = source_rows(["a"])
    offsets = pa.array([0, 1], pa.int32()).buffers()[1]
    broken = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff")])
    pq.write_table(rows.set_column(0, rows.schema.field("uri"), broken), Path(catalog.sources.uri, name))
    with pytest.raises(DamagedError, match="damaged or gone"):
        catalog.sources.read_files([f"{catalog.sources.uri}/{name}"])
