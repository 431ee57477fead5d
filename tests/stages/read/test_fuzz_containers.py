"""Damaged containers, lists of captions and configs: every one ends in rows, a reason, or one message."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests import fuzzing
from tokenmill.pipeline.config import ConfigError, RunConfig, Source, load
from tokenmill.pipeline.refresh.sources import list_sources, with_captions
from tokenmill.stages.read.read import Read, ReadConfig
from tokenmill.stages.table.columns import LISTED, UNPACK

pytestmark = pytest.mark.hostile

PROJECT = Path(__file__).resolve().parents[3]
PIXEL = bytes.fromhex("424d3a000000000000003600000028000000010000000100000001001800000000000400000000000000")
SCHEMA = pa.schema([*LISTED, *UNPACK])


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
URLS = [{"url": "ftp://a.example/x.jpg", "caption": "one"}, {"url": "nowhere", "caption": None, "n": [1]}]
JSONL, URLS_JSONL = ("\n".join(json.dumps(line) for line in lines).encode() for lines in (LINES, URLS))
CSV = b'text,lang\n"a document, with a comma",en\n"two\nlines",de\n'
CONTAINERS = {
    "x.tar": ("webdataset", tar()),
    "x.parquet": ("parquet", parquet()),
    "x.jsonl": ("text", JSONL),
    "x.csv": ("text", CSV),
    "x.tsv": ("text", CSV.replace(b",", b"\t")),
    "u.jsonl": ("urls", URLS_JSONL),
    "u.txt": ("urls", b"# of pictures\nftp://a.example/x.jpg\n\nnowhere\n"),
    "captions.jsonl": ("captions", b'{"file": "a.bmp", "captions": ["one", "two"]}\n[1]\n{"file": "b"}'),
}


@pytest.mark.parametrize("num_inputs", fuzzing.count())
@pytest.mark.parametrize("name", CONTAINERS)
def test_a_damaged_container_ends_in_rows(ram_path, name, num_inputs):
    kind, content = CONTAINERS[name]
    path, read = ram_path / name, Read(ReadConfig())
    repair = fuzzing.repaired_tar if name.endswith(".tar") else None
    for what, data in fuzzing.mutants(name, [content], num_inputs, repair=repair):
        path.write_bytes(data)
        row = {"uri": str(path), "size_bytes": len(data), "container": kind}
        found = read(pa.Table.from_pylist([row], schema=SCHEMA))
        assert found.num_rows and found["ends_container"].to_pylist()[-1] is True, what
        for made in found.select(["kind", "reject_reason", "reject_detail", "media_id"]).to_pylist():
            assert made["media_id"] and (made["kind"] in ("image", "text") or made["reject_reason"]), what
        for text in ("source_caption", "metadata", "member"):
            found[text].cast(pa.large_string()).validate(full=True)


@pytest.mark.parametrize("num_inputs", fuzzing.count())
def test_a_damaged_list_of_captions_costs_lines(ram_path, num_inputs):
    lines = [{"file": f"{name}.bmp", "captions": [f"said of {name}", "more"]} for name in "abc"]
    for name in "abc":
        (ram_path / f"{name}.bmp").write_bytes(PIXEL)
    whole = "\n".join(json.dumps(line) for line in lines).encode()
    for what, data in fuzzing.mutants("captions", [whole], num_inputs):
        (ram_path / "captions.jsonl").write_bytes(data)
        (ram_path / "a.txt").write_bytes(data)
        listing = list_sources([Source(uri=str(ram_path))])
        rows = with_captions(listing.rows.read())
        assert rows.num_rows == 3 + bool(listing.num_malformed), what
        rows["source_caption"].validate(full=True)


@pytest.mark.parametrize("num_inputs", fuzzing.count())
def test_a_damaged_config_is_one_message(ram_path, num_inputs):
    path = ram_path / "config.yaml"
    whole = [file.read_bytes() for file in sorted((PROJECT / "configs").glob("*.yaml"))]
    for what, data in fuzzing.mutants("config", whole, num_inputs, fuzzing.YAML):
        path.write_bytes(data)
        try:
            assert isinstance(load(path), RunConfig), what
        except ConfigError as error:
            assert "config.yaml" in str(error), what


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
