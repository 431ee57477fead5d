"""Versions: who made them, how they differ; past ones stay readable and unwritable; small files are put together."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console

from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.catalog.versions import difference, runs
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.reports.versions import print_difference, print_log
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.tokenizer.shards import TOKENS


def tokens(caption: str, *ids: str, fingerprint: str = "f") -> pa.Table:
    rows = [
        {"media_id": i, "kind": "image", "codes": [1, 2], "caption": caption, "fingerprint": fingerprint, "run_id": "r"}
        for i in ids
    ]
    return pa.Table.from_pylist(rows, schema=TOKENS)


@pytest.fixture
def catalog(tmp_path) -> Catalog:
    made = Catalog(str(tmp_path / "root"))
    made.create()
    made.tokens.append(tokens("one", "a", "b", "c"), {"run_id": "run-1", "phase": "tokenize"})
    made.tokens.edit(pc.field("media_id") == "a", None, {"run_id": "run-2", "what": "objects gone"})
    renamed = tokens("two", "b")
    made.tokens.edit(pc.field("media_id") == "b", lambda _: renamed, {"run_id": "run-2", "what": "captions changed"})
    made.tokens.append(tokens("one", "d"), {"run_id": "run-3", "phase": "tokenize"})
    anew = tokens("one", "c", fingerprint="g")
    made.tokens.edit(pc.field("media_id") == "c", lambda _: anew, {"run_id": "run-3", "phase": "tokenize"})
    return made


def test_runs_say_what_came_and_went(catalog, tmp_path):
    found = runs(catalog)
    assert [(run["run_id"], run["version"], run["rows"]["tokens"]) for run in found] == [
        ("run-1", 1, [3, 0]),
        ("run-2", 3, [1, 2]),
        ("run-3", 5, [2, 1]),
    ]
    assert found[1]["what"] == ["captions changed", "objects gone"]
    config = RunConfig.model_validate({"root": catalog.root, "sources": [{"uri": "x"}]})
    console = Console(record=True, width=160)
    print_log(config, False, console)
    print_difference(config, 1, 5, False, console)
    text = console.export_text()
    assert "tokens +3 -0" in text and "captions changed" in text and "retokenized" in text


def test_a_difference_names_each_medium_once_for_each_change(catalog):
    one, two = Catalog(catalog.root, 1), Catalog(catalog.root, 5)
    assert difference(one, two) == {"added": ["d"], "removed": ["a"], "recaptioned": ["b"], "retokenized": ["c"]}
    assert difference(two, two) == {"added": [], "removed": [], "recaptioned": [], "retokenized": []}


def test_a_past_version_is_read_and_never_written(catalog, tmp_path):
    past = Catalog(catalog.root, 1)
    assert past.tokens.scan(["media_id"])["media_id"].to_pylist() == ["a", "b", "c"]
    assert past.media.count() == 0
    with pytest.raises(CatalogError, match="past and stays"):
        past.tokens.append(tokens("one", "z"), {"run_id": "x"})
    with pytest.raises(CatalogError, match="no version 9, only 0 to 5"):
        Catalog(catalog.root, 9)
    config = RunConfig.model_validate({"root": catalog.root, "sources": [{"uri": "x"}], "version": 1})
    with pytest.raises(CatalogError, match="leave --version out"):
        run_phases(config, ("curate",), "curate", Console(quiet=True))


def test_small_files_are_put_together(catalog):
    for number in range(20):
        catalog.tokens.append(tokens("one", f"m{number}"), {"run_id": "many"})
    before = catalog.tokens.scan().sort_by("media_id")
    version, num_files = catalog.tokens.version, len(catalog.tokens.files())
    fewer = catalog.tokens.compact(1 << 20, {"run_id": "many"})
    assert fewer > 15 and len(catalog.tokens.files()) == num_files - fewer
    assert catalog.tokens.version == version + 1
    assert catalog.tokens.scan().sort_by("media_id").equals(before)
    assert catalog.tokens.compact(1 << 20, {"run_id": "many"}) == 0, "nothing small is left"
    assert Catalog(catalog.root, version).tokens.count() == before.num_rows
