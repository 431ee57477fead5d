"""Tars, tables and texts as sources: to the end once, only what changed again, nothing lost when a worker dies."""

import ctypes
import io
import json
import os
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image
from rich.console import Console

from tokenmill.pipeline.commands.forget import forget
from tokenmill.pipeline.commands.vacuum import vacuum
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.run.run import Run
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.stages.read import read
from tokenmill.stages.read.read import Read, ReadConfig
from tokenmill.stages.table.columns import LISTED, UNPACK
from tokenmill.storage.identity import content_id


def photo(seed: int, side_px: int = 64) -> bytes:
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8))
    file = io.BytesIO()
    small.resize((side_px, side_px), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_tar(path: Path, samples: dict[str, tuple[bytes, str]]) -> None:
    """Key -> (image, caption), as img2dataset writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, (content, caption) in samples.items():
            said = json.dumps({"key": key, "url": f"http://x/{key}"}).encode()
            for extension, data in (("jpg", content), ("txt", caption.encode()), ("json", said)):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (path.parent / f"{path.stem}_stats.json").write_text("{}")


def run(tmp_path: Path, sources: list[dict], phases=("curate", "caption", "tokenize"), **parts) -> Run:
    rules = {"image_rules": {"large": "width_px >= 48"}, "text_rules": {"long": "size_bytes >= 10"}}
    made = {
        "root": str(tmp_path / "root"),
        "sources": sources,
        "curate": {"decide": rules},
        "tokenize": {"frames": {"area_px": 64 * 64}},
        **parts,
    }
    return run_phases(RunConfig.model_validate(made), phases, "run", Console(quiet=True))


def state(made: Run) -> list[tuple]:
    columns = ["media_id", "uri", "member", "offset_bytes", "source_caption", "reject_reason"]
    rows = made.catalog.media.scan(columns).to_pylist()
    return sorted((row["uri"], row["member"] or "", row["source_caption"], row["reject_reason"]) for row in rows)


def test_tars_are_read_once_and_only_what_changed_again(tmp_path):
    folder = tmp_path / "tars"
    samples = {f"{i:04d}": (photo(i, 32 if i == 3 else 64), f"caption {i}") for i in range(40)}
    write_tar(folder / "0.tar", samples)
    write_tar(folder / "1.tar", {"a": (photo(100), "one"), "b": (photo(5), "a copy")})
    source = [{"uri": str(folder), "kind": "webdataset"}]
    first = run(tmp_path, source)
    assert first.reports[0].num_read == 2 and first.reports[0].num_seen == 41 and first.reports[0].num_copies == 1
    assert first.reports[0].rejected == {"large": 1}
    assert first.reports[2].num_kept == 40
    media = {row["member"]: row for row in first.catalog.media.scan().to_pylist()}
    assert media["0007.jpg"]["source_caption"] == "caption 7" and media["0007.jpg"]["media_id"] == content_id(
        [photo(7)]
    )
    assert json.loads(media["0007.jpg"]["metadata"])["url"] == "http://x/0007"
    captions = first.catalog.tokens.scan(["caption", "codes"])
    assert set(captions["caption"].to_pylist()) == {f"caption {i}" for i in range(40) if i != 3} | {"one"}
    assert all(len(codes) == 64 for codes in captions["codes"].to_pylist())

    again = run(tmp_path, source)
    assert [report.num_read for report in again.reports] == [0, 0, 0]

    # One member changes, one goes, one comes, one gets another caption; all others move inside the tar.
    before = {row["media_id"]: row["run_id"] for row in again.catalog.media.scan().to_pylist()}
    samples = {"new": (photo(77), "new"), **samples, "0001": (photo(78), "changed"), "0002": (photo(2), "said anew")}
    del samples["0009"]
    write_tar(folder / "0.tar", samples)
    third = run(tmp_path, source)
    assert third.reports[0].num_read == 1 and third.reports[0].num_seen == 2
    assert [report.num_read for report in third.reports[1:]] == [3, 2]
    media = third.catalog.media.scan().to_pylist()
    assert {row["media_id"] for row in media if row["media_id"] not in before} == {
        content_id([photo(77)]),
        content_id([photo(78)]),
    }
    by_member = {row["member"]: row for row in media}
    assert "0009.jpg" not in by_member and by_member["0002.jpg"]["source_caption"] == "said anew"
    with tarfile.open(folder / "0.tar") as tar:
        assert by_member["0007.jpg"]["offset_bytes"] == tar.getmember("0007.jpg").offset_data
    assert "said anew" in third.catalog.tokens.scan(["caption"])["caption"].to_pylist()

    (folder / "1.tar").unlink()
    last = run(tmp_path, source)
    assert {row["uri"].rsplit("/", 1)[1] for row in last.catalog.media.scan(["uri"]).to_pylist()} == {"0.tar"}
    fresh = run(tmp_path / "anew", source)
    assert state(last) == state(fresh)


def test_tables_and_texts(tmp_path):
    rows = [{"image": {"bytes": photo(i), "path": None}, "caption": f"row {i}"} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "images.parquet")
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a long document\n" * 400, "short")))
    made = run(
        tmp_path,
        [
            {"uri": str(tmp_path / "images.parquet"), "kind": "parquet"},
            {"uri": str(texts), "kind": "text"},
        ],
    )
    assert made.reports[0].num_kept == 6 and made.reports[0].rejected == {"long": 1}
    tokens = made.catalog.tokens.scan(["kind", "caption", "codes", "grid_h"]).to_pylist()
    images = [row for row in tokens if row["kind"] == "image"]
    assert sorted(row["caption"] for row in images) == [f"row {i}" for i in range(5)]
    assert all(len(row["codes"]) == 64 for row in images)
    text = next(row for row in tokens if row["kind"] == "text")
    assert text == {"kind": "text", "caption": "a long document\n" * 400, "codes": [], "grid_h": 0}


def test_damage_is_a_row_and_costs_no_neighbour(tmp_path):
    folder = tmp_path / "tars"
    write_tar(folder / "whole.tar", {"a": (photo(1), "one")})
    write_tar(folder / "cut.tar", {str(i): (photo(10 + i), "x") for i in range(4)})
    data = (folder / "cut.tar").read_bytes()
    (folder / "cut.tar").write_bytes(data[: len(data) // 2])
    (folder / "empty.tar").write_bytes(b"")
    made = run(tmp_path, [{"uri": str(folder), "kind": "webdataset"}], ("curate",))
    reasons = {(row[0].rsplit("/", 1)[1], row[1]): row[3] for row in state(made)}
    assert reasons[("whole.tar", "a.jpg")] is None and reasons[("cut.tar", "0.jpg")] is None
    assert reasons[("cut.tar", "")] == "corrupt_container" and reasons[("empty.tar", "")] is not None
    again = run(tmp_path, [{"uri": str(folder), "kind": "webdataset"}], ("curate",))
    assert again.reports[0].num_read == 0, "a damaged tar is not read again until it changes"
    (folder / "cut.tar").write_bytes(data)
    mended = run(tmp_path, [{"uri": str(folder), "kind": "webdataset"}], ("curate",))
    assert mended.reports[0].num_read == 1
    assert {row[3] for row in state(mended) if row[0].endswith("cut.tar")} == {None}


def test_a_tar_that_another_source_opens_now_is_read_anew(tmp_path):
    """As a file of a folder it is no medium; opened it is what is in it, once."""
    folder = tmp_path / "tars"
    write_tar(folder / "whole.tar", {"a": (photo(1), "one"), "b": (photo(2), "two")})
    (folder / "empty.tar").write_bytes(b"")
    for kind, members in (("files", {"": "unknown_format"}), ("webdataset", {"a.jpg": None, "b.jpg": None})):
        sources = [{"uri": str(folder), "kind": kind}]
        fresh = run(tmp_path, sources, ("curate",))
        assert {row[1]: row[3] for row in state(fresh) if "whole.tar" in row[0]} == members
        assert fresh.reports[0].num_read and run(tmp_path, sources, ("curate",)).reports[0].num_read == 0


class Deadly(Read):
    """Dies with its process, or hangs, while it has a member of that name at hand; at one named unseen, before that."""

    def _member(self, uri, member, known, ids, at_hand):
        self._log = Path(uri).with_suffix(".log")
        if "unseen" in member.name:
            os._exit(1)
        return super()._member(uri, member, known, ids, at_hand)

    def _identify(self, chunks, name, local, size_bytes=None):
        with self._log.open("a") as log:
            log.write(f"{name}\n")
        if "kill" in name:
            os._exit(1)
        if "hang" in name:
            ctypes.PyDLL(None).sleep(1000)
        return super()._identify(chunks, name, local, size_bytes)


@pytest.mark.parametrize("where", ["here", pytest.param("ray", marks=pytest.mark.service)])
def test_a_guilty_member_costs_its_limit_once(tmp_path, monkeypatch, request, where):
    names = [f"{i:02d}" for i in range(10)]
    names[4:4], names[9:9] = ["04hang"], ["08kill"]
    write_tar(tmp_path / "tars" / "0.tar", {name: (photo(i), name) for i, name in enumerate(names)})
    source = [{"uri": str(tmp_path / "tars"), "kind": "webdataset"}]
    whole = state(run(tmp_path / "whole", source, ("curate",)))
    monkeypatch.setattr("tokenmill.stages.Read", Deadly)
    cluster = {"medium_timeout_s": 2.0}
    if where == "ray":
        request.getfixturevalue("local_ray")
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        cluster["local_rows"] = 0
    made = run(tmp_path, source, ("curate",), cluster=cluster)
    reasons = {"04hang.jpg": "timed_out", "08kill.jpg": "worker_died"}
    assert state(made) == [(*row[:3], reasons.get(row[1])) for row in whole]
    tried = Counter((tmp_path / "tars" / "0.log").read_text().split("\n"))
    assert (tried["04hang.jpg"], tried["08kill.jpg"]) == (1, 2), "workers that each of them cost"
    assert tried["09.jpg"] == 1, "the tar was not divided"
    assert run(tmp_path, source, ("curate",)).reports[0].num_read == 0


@pytest.mark.slow
def test_a_member_that_kills_its_worker_unseen_is_one_rejected_row(tmp_path, monkeypatch):
    folder = tmp_path / "tars"
    samples = {f"{i:02d}{'unseen' if i == 50 else ''}": (photo(i), "x") for i in range(70)}
    write_tar(folder / "0.tar", samples)
    source = [{"uri": str(folder), "kind": "webdataset"}]
    monkeypatch.setattr("tokenmill.stages.Read", Deadly)
    made = run(tmp_path, source, ("curate",), cluster={"medium_timeout_s": 20.0})
    reasons = [(row[1], row[3]) for row in state(made) if row[3]]
    assert reasons == [("50unseen.jpg", "worker_died")]
    assert made.reports[0].num_kept == 69
    assert run(tmp_path, source, ("curate",)).reports[0].num_read == 0


def test_known_members_are_not_measured(tmp_path):
    write_tar(tmp_path / "0.tar", {str(i): (photo(i), "x") for i in range(3)})
    row = {"uri": str(tmp_path / "0.tar"), "container": "webdataset"}
    known = {"known_members": ["0.jpg"], "known_ids": [content_id([photo(0)])]}
    table = pa.Table.from_pylist([row | known], pa.schema([*LISTED, *UNPACK]))
    found = Read(ReadConfig())(table).to_pylist()
    assert [row["reject_reason"] for row in found] == ["known", None, None]
    assert found[0]["content"] is None and found[0]["source_caption"] == "x"
    assert [row["ends_container"] for row in found] == [None, None, True]
    only = pa.Table.from_pylist([row | {"only": ["2.jpg"]}], pa.schema([*LISTED, *UNPACK]))
    assert Read(ReadConfig())(only)["member"].to_pylist() == ["2.jpg"]


def test_a_tar_is_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "_HELD_BYTES", 1)
    write_tar(tmp_path / "0.tar", {str(i): (photo(i), "x") for i in range(10)})
    row = {"uri": str(tmp_path / "0.tar"), "container": "webdataset"}
    parts = list(Read(ReadConfig()).stream(pa.Table.from_pylist([row], pa.schema([*LISTED, *UNPACK]))))
    assert [part.num_rows for part in parts] == [1] * 10
    assert pc.sum(pc.is_valid(pa.concat_tables(parts)["ends_container"])).as_py() == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "webdataset"}, "nothing there that ends in .tar"),
        ({"kind": "webdataset", "column": "x"}, "has no columns"),
        ({"kind": "text", "caption_column": "x"}, "has no caption"),
        ({"kind": "parquet", "captions": "x"}, "captions belong to kind 'files'"),
    ],
)
def test_what_does_not_fit_is_said_before_work(tmp_path, source, message):
    (tmp_path / "a.jpg").write_bytes(photo(1))
    with pytest.raises(Exception, match=message):
        run(tmp_path, [{"uri": str(tmp_path), **source}], ("curate",))


@pytest.fixture
def web() -> Iterator[Any]:
    from web_server import Web  # workers open this module for Deadly, without the path of the tests

    made = Web()
    yield made
    made.stop()


def test_urls_are_fetched_once_and_kept(tmp_path, web):
    pictures = {f"/{i}.jpg": photo(i) for i in range(6)}
    for path, content in pictures.items():
        web.routes[path] = lambda handler, content=content: handler.answer(body=content, ETag='"x"')
    web.routes["/no.jpg"] = lambda handler: handler.answer(body=photo(50), X_Robots_Tag="noai")
    web.routes["/ill.jpg"] = lambda handler: handler.answer(500)
    urls = [web.url(path) for path in [*pictures, "/no.jpg", "/ill.jpg", "/gone.jpg"]]
    listed = tmp_path / "list.jsonl"
    listed.write_text("".join(json.dumps({"url": url, "caption": f"of {url[-5]}"}) + "\n" for url in urls))
    source = [{"uri": str(listed), "kind": "urls"}]
    pace = {"host_delay_s": 0.0, "backoff_s": 0.0, "retries": 1}
    rules = {"image_rules": {"large": "width_px >= 48"}}
    part = {"decide": rules, "fetch": {"allow_private": True}, "fetch_pace": pace}
    made = run(tmp_path, source, curate=part)
    reasons = {Path(row[1]).name: row[3] for row in state(made)}
    whole = {f"{i}.jpg" for i in range(6)}
    failed = {"no.jpg": "opted_out", "ill.jpg": "http_server_error", "gone.jpg": "http_client_error"}
    assert reasons == dict.fromkeys(whole) | failed
    assert made.reports[2].num_kept == 6, "tokenized from what was kept of them"
    medium = next(row for row in made.catalog.media.scan().to_pylist() if row["member"].endswith("/3.jpg"))
    assert medium["source_caption"] == "of 3" and json.loads(medium["metadata"])["http"]["etag"] == '"x"'

    num_asked = len(web.asked)
    listed.write_text(listed.read_text() + json.dumps({"url": web.url("/late.jpg")}) + "\n")
    web.routes["/late.jpg"] = lambda handler: handler.answer(body=photo(60))
    web.routes["/ill.jpg"] = web.routes["/0.jpg"]  # well again, with the bytes of another
    again = run(tmp_path, source, curate=part)
    assert set(web.asked[num_asked:]) - {"/robots.txt"} == {"/late.jpg", "/ill.jpg"}
    assert {Path(row[1]).name for row in state(again) if row[3] is None} == whole | {"late.jpg"}

    # What is forgotten or no medium any more is deleted from where it was kept.
    def kept() -> int:
        return sum(path.is_file() for path in (tmp_path / "root" / "fetched").rglob("*"))

    assert kept() == 7
    forget(again.config, [web.url("/3.jpg")], Console(quiet=True))
    assert kept() == 6
    listed.write_text("".join(json.dumps({"url": url}) + "\n" for url in urls[:2]))
    run(tmp_path, source, curate=part)
    assert vacuum(again.config, 24, False, Console(quiet=True))["fetched"] == 4 and kept() == 2

    refused = run(tmp_path / "private", source, ("curate",), curate={"decide": rules})
    assert {row[3] for row in state(refused)} == {"private_address"}
