"""Tables of older releases are read and migrated, those of newer ones refused; a version that lost files says why."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog import tables as catalog_module
from tokenmill.pipeline.catalog.forgotten import Forgotten, drop_forgotten
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.reports.status import closing
from tokenmill.pipeline.reports.terminal import PhaseReport
from tokenmill.stages.table.columns import MEDIA
from tokenmill.tokenizer.shards import TOKENS


def tokens(*ids: str, schema: pa.Schema = TOKENS) -> pa.Table:
    rows = [
        {"media_id": i, "kind": "image", "codes": [1, 2], "caption": "c", "fingerprint": "f", "run_id": "r"}
        for i in ids
    ]
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)


def without(*names: str) -> pa.Schema:
    return pa.schema([field for field in TOKENS if field.name not in names])


def written(tmp_path, monkeypatch, schema: pa.Schema) -> str:
    """A root whose tokens table was made, with one row, by a release with this schema."""
    with monkeypatch.context() as release:
        release.setitem(catalog_module.SCHEMAS, "tokens", schema)
        made = Catalog(str(tmp_path))
        made.create()
        made.tokens.append(tokens("old", schema=schema), {"run_id": "r1"})
    return str(tmp_path)


def test_a_table_of_an_older_release_reads_as_nulls_and_gets_its_columns_with_the_first_write(tmp_path, monkeypatch):
    root = written(tmp_path, monkeypatch, without("frames_trimmed", "fps"))
    catalog = Catalog(root)
    catalog.create()
    assert catalog.tokens.scan(["media_id", "fps"]).to_pylist() == [{"media_id": "old", "fps": None}]
    assert catalog.tokens.version == 1, "reading changed the table"

    catalog.tokens.append(tokens("new").set_column(6, "fps", pa.array([24.0])), {"run_id": "r2"})
    found = {row["media_id"]: row["fps"] for row in Catalog(root).tokens.scan(["media_id", "fps"]).to_pylist()}
    assert found == {"old": None, "new": 24.0}
    added, columns = catalog.tokens.history(2)
    assert (columns["what"], columns["run_id"]) == ("columns added: fps, frames_trimmed", "r2")
    assert added["rows_added"] == "1" and catalog.tokens.version == 3
    plain = DeltaTable(catalog.tokens.uri).to_pyarrow_table(columns=["fps"])
    assert sorted(plain["fps"].to_pylist(), key=str) == [24.0, None]
    assert Catalog(root, 1).tokens.count() == 1

    catalog.tokens.edit(pc.field("media_id") == "old", None, {"run_id": "r3"})
    assert catalog.tokens.version == 4, "columns are added once"


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (TOKENS.append(pa.field("depth", pa.string())), "tokens: has columns .* not know: depth; .*newer tokenmill"),
        (
            TOKENS.set(6, pa.field("fps", pa.string())),
            r"tokens: has columns of types .*: fps \(string, not double\); .*newer tokenmill",
        ),
        (without("fingerprint"), "tokens: lacks columns that this release needs: fingerprint; .*older tokenmill"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_done(tmp_path, monkeypatch, schema, message):
    root = written(tmp_path, monkeypatch, schema)
    for use in (lambda: Catalog(root).create(), lambda: Catalog(root).tokens.count(), lambda: Catalog(root, 1).tokens):
        with pytest.raises(CatalogError, match=message):
            use().scan()
    assert DeltaTable(storage.join(root, "tokens")).version() == 1


@pytest.fixture
def versions(tmp_path) -> Catalog:
    made = Catalog(str(tmp_path / "root"))
    made.create()
    made.tokens.append(tokens("a", "b"), {"run_id": "r1"})
    made.tokens.append(tokens("c"), {"run_id": "r2"})
    return made


def delete(catalog: Catalog, names: list[str]) -> None:
    for name in names:
        storage.delete_file(name)


def test_a_version_whose_files_were_forgotten_says_so(versions):
    forgotten = Forgotten(versions.root, {"a"})
    before = versions.tokens.files()
    drop_forgotten(versions, forgotten, "r3")
    delete(versions, sorted(set(before) - set(versions.tokens.files())))
    for read in (lambda past: past.scan(["media_id"]), lambda past: past.count(), lambda past: past.files()):
        with pytest.raises(CatalogError, match=r"tokens: version 2 .* 1 of its 2 files .* forgotten .*newest version"):
            read(Catalog(versions.root, 2).tokens)
    assert len(Catalog(versions.root, 2).tokens.files(must_exist=False)) == 2
    assert Catalog(versions.root).tokens.count() == 2
    assert Catalog(versions.root, versions.tokens.version).tokens.count() == 2


def test_a_training_on_kept_tokens_ends_well_where_the_other_tables_were_vacuumed(versions):
    media = [{"media_id": "a", "file_id": "a", "kind": "image", "uri": "u", "fingerprint": "f", "run_id": "r"}]
    versions.media.append(pa.Table.from_pylist(media, schema=MEDIA), {"run_id": "r2"})
    versions.tokens.append(tokens("d"), {"run_id": "r3"})
    delete(versions, versions.media.files())
    console = Console(record=True)
    closing([PhaseReport("train")], Catalog(versions.root, 2), console)
    assert "train" in console.export_text()


def test_a_version_that_was_vacuumed_says_so(versions):
    versions.tokens.edit(pc.field("media_id") == "c", None, {"run_id": "r3"})
    assert versions.tokens.vacuum(0, False, [])[0] == 1
    with pytest.raises(
        CatalogError, match=r"version 2 .* 1 of its 2 files .* since then old versions vacuumed \(`tokenmill va"
    ):
        versions.tokens.scan(version=2)
    assert Catalog(versions.root, 1).tokens.count() == 2, "the other file is needed still"
