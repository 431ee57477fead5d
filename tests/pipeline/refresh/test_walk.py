"""Odd entries of a source: each is a row with a reason, none stops or hangs the run, none is read that may not be."""

import os
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import ConfigError, RunConfig, Source
from tokenmill.pipeline.refresh import walk as walking
from tokenmill.pipeline.refresh.sources import check_sources, list_sources
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.storage import object_store

QUIET = Console(quiet=True)


def draw(path: Path | str | bytes, seed: int = 0) -> None:
    tiles = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    with open(path, "wb") as file:
        Image.fromarray(tiles).resize((64, 64)).save(file, "png")


def curated(root: Path, *uris: str, limit_s: float = 20, **source) -> dict[str, str | None]:
    """Reasons by uri below the first source, after a run."""
    document = {"root": str(root), "sources": [{"uri": uri, **source} for uri in uris]}
    document["curate"] = {"decide": {"image_rules": {}}, "resources": {"workers": 1}}
    document["cluster"] = {"medium_timeout_s": limit_s}
    run_phases(RunConfig.model_validate(document), ("curate",), "curate", QUIET)
    rows = Catalog(str(root)).media.scan(["uri", "reject_reason"]).to_pylist()
    return {os.path.relpath(storage.absolute(row["uri"]), uris[0]): row["reject_reason"] for row in rows}


def test_odd_entries_are_rows_with_a_reason(tmp_path):
    folder, outside = tmp_path / "photos", tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    outside.mkdir()
    draw(folder / "good.png")
    draw(folder / "deep" / "other.png", seed=1)
    draw(outside / "secret.png", seed=2)
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "self.png").symlink_to("self.png")
    (folder / "deep" / "up").symlink_to("..")
    (folder / "leaves.png").symlink_to(outside / "secret.png")
    (folder / "all").symlink_to(outside)
    (folder / "inside.png").symlink_to("deep/other.png")
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.png"))
    expected = {
        "good.png": None, "deep/other.png": None, "dangling.png": "dangling_link", "self.png": "link_loop",
        "deep/up": "link_loop", "leaves.png": "outside_source", "all": "outside_source", "pipe.png": "not_a_file",
        "socket.png": "not_a_file",
    }  # fmt: skip
    assert curated(tmp_path / "root", str(folder)) == expected
    listing = list_sources([Source(uri=str(folder))])
    assert str(folder / "inside.png") in listing.rows.read()["uri"].to_pylist(), "a second place of the same content"
    changes = run_phases(
        RunConfig.model_validate({"root": str(tmp_path / "root"), "sources": [{"uri": str(folder)}],
                                  "curate": {"decide": {"image_rules": {}}}}),
        ("curate",), "curate", QUIET,
    )  # fmt: skip
    assert changes.reports[0].num_read == 0, "odd entries are known like others"
    followed = curated(tmp_path / "root", str(folder), follow_links=True)
    assert followed["all/secret.png"] is None and "outside_source" not in followed.values()


def test_names_that_are_no_utf8_are_processed(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    draw(os.path.join(os.fsencode(folder), b"caf\xe9.png"))
    with open(os.path.join(os.fsencode(folder), b"caf\xe9.txt"), "w") as sidecar:
        sidecar.write("a café")
    draw(folder / "caf%E9.png", seed=1)
    assert curated(tmp_path / "root", str(folder)) == {"caf\udce9.png": None, "caf%E9.png": None}
    media = Catalog(str(tmp_path / "root")).media.scan(["uri", "source_caption"]).to_pylist()
    (odd,) = (row for row in media if row["uri"].startswith("file://"))
    assert odd["uri"].endswith("/caf%E9.png") and odd["source_caption"] == "a café"
    with open(os.path.join(os.fsencode(folder), b"caf\xe9.png"), "rb") as file:
        assert storage.read_bytes(odd["uri"]) == file.read()


def test_what_may_not_be_looked_into_is_not_gone(tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    (folder / "closed").mkdir(parents=True)
    draw(folder / "good.png")
    draw(folder / "closed" / "kept.png", seed=1)
    assert curated(tmp_path / "root", str(folder)) == {"good.png": None, "closed/kept.png": None}
    scandir, access = os.scandir, os.access

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    with monkeypatch.context() as patched:  # root may look everywhere
        patched.setattr(walking.os, "scandir", closed)
        patched.setattr(
            walking.os, "access", lambda path, mode: not str(path).endswith("good.png") and access(path, mode)
        )
        found = curated(tmp_path / "root", str(folder))
    assert found == {"good.png": "no_permission", "closed": "no_permission", "closed/kept.png": None}
    assert curated(tmp_path / "root", str(folder)) == {"good.png": None, "closed/kept.png": None}


@pytest.fixture
def two_sources(tmp_path):
    for number, name in enumerate(("one", "two")):
        (tmp_path / name / "deep").mkdir(parents=True)
        draw(tmp_path / name / "a.png", seed=10 * number)
        draw(tmp_path / name / "deep" / "b.png", seed=10 * number + 1)
    return str(tmp_path / "one"), str(tmp_path / "two")


def test_a_source_that_fails_half_way_stops_alone(tmp_path, monkeypatch, two_sources):
    curated(tmp_path / "root", *two_sources)
    draw(Path(two_sources[0]) / "new.png", seed=20)
    draw(Path(two_sources[1]) / "new.png", seed=21)
    (Path(two_sources[1]) / "a.png").unlink()
    scandir = os.scandir

    def broken(path):
        if str(path) == f"{two_sources[1]}/deep":
            raise OSError(5, "Input/output error", path)
        return scandir(path)

    with monkeypatch.context() as patched:
        patched.setattr(walking.os, "scandir", broken)
        with pytest.raises(ConfigError, match=r"sources.1.uri: .*two: Input/output error.*\n.*run the same command"):
            curated(tmp_path / "root", *two_sources)
    there = {row["uri"] for row in Catalog(str(tmp_path / "root")).media.scan(["uri"]).to_pylist()}
    one, two = ({uri.rsplit("/", 1)[1] for uri in there if uri.startswith(folder)} for folder in two_sources)
    assert one == {"a.png", "b.png", "new.png"} and two == {"a.png", "b.png"}, "nothing of it came, changed or went"
    curated(tmp_path / "root", *two_sources)
    there = {row["uri"] for row in Catalog(str(tmp_path / "root")).media.scan(["uri"]).to_pylist()}
    assert {uri.rsplit("/", 1)[1] for uri in there if uri.startswith(two_sources[1])} == {"b.png", "new.png"}


def test_a_disk_that_hangs_is_named(monkeypatch, two_sources):
    scandir, hung = os.scandir, threading.Event()

    def hangs(path):
        if str(path) == f"{two_sources[0]}/deep":
            hung.wait(30)
        return scandir(path)

    monkeypatch.setattr(walking.os, "scandir", hangs)
    started = time.monotonic()
    sources = [Source(uri=uri) for uri in two_sources]
    listing = list_sources(sources, limit_s=0.3)
    assert "no sign of life for 0.3 s" in listing.failed[0] and listing.unseen == [two_sources[0]]
    assert listing.rows.num_rows == 2
    monkeypatch.setattr(walking.os, "scandir", lambda path: hung.wait(30))
    with pytest.raises(ConfigError, match=r"sources.0.uri: .*no sign of life for 0.3 s; see whether the disk answers"):
        check_sources(sources, limit_s=0.3)
    assert time.monotonic() - started < 10
    hung.set()


def test_what_hangs_when_it_is_read_is_rejected(tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    draw(folder / "good.png")
    os.mkfifo(folder / "hangs.png")  # as a file on a disk that gives no answer
    monkeypatch.setattr(walking.stat, "S_ISREG", lambda mode: True)
    started = time.monotonic()
    assert curated(tmp_path / "root", str(folder), limit_s=1.0) == {"good.png": None, "hangs.png": "timed_out"}
    assert time.monotonic() - started < 20


def test_odd_keys_of_a_store_are_read(tmp_path, s3):
    bucket = s3.removeprefix("s3://").partition("/")[0]
    keys = ["in//double.png", "in/../up.png", "in/sub/./dot.png", "in/plain.png"]
    for number, key in enumerate(keys):
        draw(tmp_path / "picture.png", seed=number)
        object_store.client().put_object(Bucket=bucket, Key=key, Body=(tmp_path / "picture.png").read_bytes())
    document = {"root": str(tmp_path / "root"), "sources": [{"uri": f"s3://{bucket}/in"}]}
    document |= {"curate": {"decide": {"image_rules": {}}}, "tokenize": {"frames": {"area_px": 1024}}}
    phases = ("curate", "caption", "tokenize")
    run = run_phases(RunConfig.model_validate(document), phases, "run", QUIET)
    media = run.catalog.media.scan(["uri", "reject_reason"]).to_pylist()
    assert {row["uri"]: row["reject_reason"] for row in media} == {f"s3://{bucket}/{key}": None for key in keys}
    assert run.catalog.tokens.count() == len(keys), "and read again to be tokenized"
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"s3://{bucket}/in//nothing.png")
