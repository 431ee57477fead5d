"""Damaged containers, lists of captions and configs: every one ends in rows, a reason, or one message."""

import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st

from tokenmill.pipeline.config import ConfigError, RunConfig, Source, load
from tokenmill.pipeline.refresh.sources import list_sources, with_captions
from tokenmill.stages.read.read import Read, ReadConfig
from tokenmill.stages.table.columns import LISTED, UNPACK

PROJECT = Path(__file__).resolve().parents[3]
NUM_EXAMPLES = int(os.environ.get("TOKENMILL_FUZZ_EXAMPLES", "300"))
PIXEL = bytes.fromhex("424d3a000000000000003600000028000000010000000100000001001800000000000400000000000000")
FUZZED = settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ODD = [
    b"",
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    "\u202e".encode(),
    b'"',
    b"\n",
    b"{",
    b"[" * 300,
    b"9" * 40,
    b"\\ud800",
]


@st.composite
def damage(draw) -> list[tuple[float, int, bytes]]:
    """Edits: where (a share of the length), how many bytes go there, what comes in their place."""
    place, gone = st.floats(0, 1), st.integers(0, 600)
    edit = st.tuples(place, gone, st.one_of(st.sampled_from(ODD), st.binary(max_size=16)))
    return draw(st.lists(edit, min_size=1, max_size=4))


def damaged(content: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    data = bytearray(content)
    for where, gone, come in edits:
        start = int(where * len(data))
        data[start : start + gone] = come
    return bytes(data)


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for name, content in (
            ("a.bmp", PIXEL), ("a.txt", b"a caption"), ("a.json", b'{"caption": "c", "n": [1, {"x": null}]}'),
            ("deep/b.bmp", PIXEL + b"b"), ("deep/b.cls", b"3"), ("c" * 120 + ".bmp", PIXEL + b"c"),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return out.getvalue()


def parquet() -> bytes:
    out = io.BytesIO()
    rows = {"bytes": [PIXEL, PIXEL + b"2", None], "caption": ["one", None, "three"], "n": [1, 2, 3]}
    pq.write_table(pa.table(rows), out)
    return out.getvalue()


LINES = [{"text": "a document of some words", "lang": "en"}, {"text": "another", "n": 3}, {"text": None}]
JSONL = "\n".join(json.dumps(line) for line in LINES).encode()
CSV = b'text,lang\n"a document, with a comma",en\nanother,de\n'
CONTAINERS = {
    "x.tar": ("webdataset", tar()),
    "x.parquet": ("parquet", parquet()),
    "x.jsonl": ("text", JSONL),
    "x.csv": ("text", CSV),
    "x.tsv": ("text", CSV.replace(b",", b"\t")),
}


@pytest.mark.parametrize("name", CONTAINERS)
@FUZZED
@given(edits=damage())
def test_a_damaged_container_ends_in_rows(tmp_path, name, edits):
    kind, content = CONTAINERS[name]
    path = tmp_path / name
    path.write_bytes(damaged(content, edits))
    row = {"uri": str(path), "size_bytes": path.stat().st_size, "container": kind}
    table = pa.Table.from_pylist([row], schema=pa.schema([*LISTED, *UNPACK]))
    found = Read(ReadConfig())(table)
    assert found.num_rows and found["ends_container"].to_pylist()[-1] is True
    for made in found.select(["kind", "reject_reason", "reject_detail", "media_id"]).to_pylist():
        assert made["media_id"] and (made["kind"] in ("image", "text") or made["reject_reason"])
    for text in ("source_caption", "metadata", "member"):
        found[text].cast(pa.large_string()).validate(full=True)


@FUZZED
@given(edits=damage())
def test_a_damaged_list_of_captions_costs_lines(tmp_path, edits):
    folder = tmp_path / "photos"
    folder.mkdir(exist_ok=True)
    lines = [{"file": f"{name}.bmp", "captions": [f"said of {name}", "more"]} for name in "abc"]
    for name in "abc":
        (folder / f"{name}.bmp").write_bytes(PIXEL)
    whole = "\n".join(json.dumps(line) for line in lines).encode()
    (folder / "captions.jsonl").write_bytes(damaged(whole, edits))
    (folder / "a.txt").write_bytes(damaged(b"said beside it", edits))
    listing = list_sources([Source(uri=str(folder))])
    rows = with_captions(listing.rows)
    assert rows.num_rows == 3 + bool(listing.num_malformed)
    rows["source_caption"].validate(full=True)


@FUZZED
@given(edits=damage())
def test_a_damaged_config_is_one_message(tmp_path, edits):
    path = tmp_path / "config.yaml"
    path.write_bytes(damaged((PROJECT / "configs" / "folder.yaml").read_bytes(), edits))
    try:
        assert isinstance(load(path), RunConfig)
    except ConfigError as error:
        assert "config.yaml" in str(error)


def test_what_is_nested_too_deep_is_said(tmp_path):
    deep = b"[" * 200_000
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "captions.jsonl").write_bytes(b'{"file": "a", "caption": ' + deep)
    (tmp_path / "photos" / "a.bmp").write_bytes(PIXEL)
    assert list_sources([Source(uri=str(tmp_path / "photos"))]).num_malformed
    (tmp_path / "x.jsonl").write_bytes(deep + b"\n" + JSONL)
    row = {"uri": str(tmp_path / "x.jsonl"), "size_bytes": 1, "container": "text"}
    found = Read(ReadConfig())(pa.Table.from_pylist([row], schema=pa.schema([*LISTED, *UNPACK])))
    assert found["reject_reason"].to_pylist()[0] is not None and found["reject_reason"].null_count == 2
    (tmp_path / "config.yaml").write_bytes(b"root: r\nsources: " + deep[:20_000])
    with pytest.raises(ConfigError, match=r"config.yaml: cannot be read as YAML"):
        load(tmp_path / "config.yaml")


def test_what_a_config_holds_is_data(tmp_path):
    path, mark = tmp_path / "config.yaml", tmp_path / "executed"
    document = yaml.safe_dump({"root": "r", "sources": [{"uri": "photos"}]})
    path.write_text(f'{document}sample: !!python/object/apply:os.system ["touch {mark}"]\n')
    with pytest.raises(ConfigError, match=r"config.yaml: cannot be read as YAML"):
        load(path)
    assert not mark.exists()
