"""Listing: everything is a row or counted, captions are found, the nearest one wins."""

import json
import os

import pytest

from tokenmill.pipeline.config import ConfigError, Source
from tokenmill.pipeline.refresh import spool
from tokenmill.pipeline.refresh.sources import list_sources, with_captions


@pytest.fixture(autouse=True, params=[250_000, 1], ids=["in memory", "in files"])
def held(request, monkeypatch):
    """Where rows are held that may be many."""
    monkeypatch.setattr(spool, "IN_MEMORY_ROWS", request.param)


def make(folder, files: dict[str, str | bytes]):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def captions_of(folder, **options) -> dict[str, str | None]:
    listing = list_sources([Source(uri=str(folder), **options)])
    rows = with_captions(listing.rows.read()).to_pylist()
    return {os.path.relpath(row["uri"], folder): row["source_caption"] for row in rows}


def test_every_file_is_listed_or_counted(tmp_path):
    make(
        tmp_path, {"a.jpg": "x", "deep/b.PNG": "y", "notes.md": "n", "a.txt": "cap", "lonely.txt": "t", ".hidden": "h"}
    )
    make(tmp_path, {"captions.jsonl": json.dumps({"file": "deep/b.PNG", "caption": "bee"})})
    listing = list_sources([Source(uri=str(tmp_path))])
    names = sorted(os.path.relpath(uri, tmp_path) for uri in listing.rows.read()["uri"].to_pylist())
    assert names == ["a.jpg", "deep/b.PNG", "lonely.txt", "notes.md"]
    assert listing.ignored == {"caption file": 2, "hidden file": 1}
    assert captions_of(tmp_path) == {"a.jpg": "cap", "deep/b.PNG": "bee", "lonely.txt": None, "notes.md": None}


def test_sidecar_before_deep_jsonl_before_shallow_jsonl(tmp_path):
    make(tmp_path, dict.fromkeys(("s/one.jpg", "s/two.jpg", "s/three.jpg"), "x"))
    top = [{"file": f"s/{name}.jpg", "captions": [f"top {name}", "second"]} for name in ("one", "two", "three")]
    make(tmp_path, {"captions.jsonl": "\n".join(json.dumps(row) for row in top)})
    make(
        tmp_path,
        {"s/captions.jsonl": json.dumps({"file": "two.jpg", "caption": "deep two"}), "s/three.txt": "side three"},
    )
    assert captions_of(tmp_path) == {"s/one.jpg": "top one", "s/two.jpg": "deep two", "s/three.jpg": "side three"}


def test_captions_file_elsewhere(tmp_path):
    make(tmp_path, {"captions.jsonl": json.dumps({"file": "images/a.jpg", "captions": ["far"]}), "images/a.jpg": "x"})
    assert captions_of(tmp_path / "images", captions=str(tmp_path / "captions.jsonl")) == {"a.jpg": "far"}


def test_state_changes_with_content_and_with_caption(tmp_path):
    make(tmp_path, {"a.jpg": "x", "b.jpg": "y", "b.txt": "old"})
    before = {row["uri"]: row for row in list_sources([Source(uri=str(tmp_path))]).rows.read().to_pylist()}
    make(tmp_path, {"a.jpg": "xx", "b.txt": "newer"})
    after = {row["uri"]: row for row in list_sources([Source(uri=str(tmp_path))]).rows.read().to_pylist()}
    a, b = (str(tmp_path / name) for name in ("a.jpg", "b.jpg"))
    assert before[a]["etag"] != after[a]["etag"]
    assert before[b]["etag"] == after[b]["etag"]
    assert before[b]["caption_etag"] != after[b]["caption_etag"]


def test_two_sources_that_overlap_list_a_file_once(tmp_path):
    make(tmp_path, {"deep/a.jpg": "x"})
    listing = list_sources([Source(uri=str(tmp_path)), Source(uri=str(tmp_path / "deep"))])
    assert listing.rows.num_rows == 1


FINE = '{"file": "a.jpg", "caption": "fine"}'


@pytest.mark.parametrize("order", [1, -1])
def test_a_container_in_a_folder_belongs_to_the_source_that_opens_it(tmp_path, order):
    make(tmp_path, {"a.jpg": "x", "packs/one.tar": "y"})
    both = [Source(uri=str(tmp_path)), Source(uri=str(tmp_path / "packs"), kind="webdataset")]
    rows = list_sources(both[::order]).rows.read().to_pylist()
    found = {os.path.relpath(row["uri"], tmp_path): row["container"] for row in rows}
    assert found == {"a.jpg": None, "packs/one.tar": "webdataset"} and len(rows) == 2


def test_a_malformed_line_of_captions_costs_that_line(tmp_path):
    lines = [FINE, "not json", '{"file": "b.jpg", "caption": "so is this"}']
    make(tmp_path, {"a.jpg": "x", "b.jpg": "y", "captions.jsonl": "\n".join(lines)})
    listing = list_sources([Source(uri=str(tmp_path))])
    assert (listing.num_malformed, listing.malformed) == (1, [f"{tmp_path}/captions.jsonl, line 2"])
    assert captions_of(tmp_path) == {"a.jpg": "fine", "b.jpg": "so is this", "captions.jsonl": None}


def test_a_list_is_a_row_while_lines_of_it_are_malformed(tmp_path):
    def row(text: str) -> dict | None:
        make(tmp_path, {"captions.jsonl": text})
        rows = list_sources([Source(uri=str(tmp_path))]).rows.read().to_pylist()
        return next((row for row in rows if row["uri"].endswith(".jsonl")), None)

    make(tmp_path, {"a.jpg": "x"})
    first = row(f"{FINE}\nnot json")
    assert first["container"] == "captions"
    assert row(f"{FINE.replace('fine', 'finer')}\nnot json\n{FINE}")["etag"] == first["etag"], "other lines are others'"
    assert row(f"{FINE}\n[1]")["etag"] != first["etag"]
    assert row(f"not json\n{FINE}")["etag"] != first["etag"]
    assert row(FINE) is None


def test_many_malformed_lines_are_counted(tmp_path):
    make(tmp_path, {"a.jpg": "x", "captions.jsonl": "x\n" * 100_000})
    listing = list_sources([Source(uri=str(tmp_path))])
    assert listing.num_malformed == 100_000 and len(listing.malformed) == 5


def test_a_list_of_captions_in_the_source_under_another_name_is_no_medium(tmp_path):
    make(tmp_path, {"said.jsonl": f"{FINE}\nnot json", "a.jpg": "x"})
    listing = list_sources([Source(uri=str(tmp_path), captions=str(tmp_path / "said.jsonl"))])
    assert listing.ignored == {"caption file": 1}
    assert {row["container"] for row in listing.rows.read().to_pylist()} == {None, "captions"}


def test_captions_are_cleaned(tmp_path):
    said = {"a.jpg": "a \ud800 b\x00c\u202egpj", "b.jpg": " \n ", "c.jpg": "long " * 50_000}
    lines = [json.dumps({"file": name, "caption": text}) for name, text in said.items()]
    make(tmp_path, dict.fromkeys([*said, "d.jpg"], "x"))
    make(tmp_path, {"captions.jsonl": "\n".join(lines), "d.txt": b"e\xff\x07f"})
    found = captions_of(tmp_path)
    assert (found["a.jpg"], found["b.jpg"], found["d.jpg"]) == ("a \ufffd bcgpj", None, "e\ufffdf")
    assert len(found["c.jpg"]) <= 1 << 16 and found["c.jpg"].startswith("long long")


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"sources.0.uri.*nowhere"):
        list_sources([Source(uri=str(tmp_path / "nowhere"))])


@pytest.mark.parametrize("name", ["\\ud800.jpg", "a\\u0000.jpg", "../../a.jpg", "'; drop table texts; --", "", "/"])
def test_a_name_that_no_file_can_have_costs_nothing(tmp_path, name):
    make(tmp_path, {"a.jpg": "x", "captions.jsonl": f'{{"file": "{name}", "caption": "odd"}}\n{FINE}'})
    assert captions_of(tmp_path) in ({"a.jpg": "fine"}, {"a.jpg": "fine", "captions.jsonl": None})
