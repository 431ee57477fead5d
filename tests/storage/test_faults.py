"""Requests that fail in every way of a network change no row, and what cannot work says so before work starts."""

import subprocess
import sys

import pyarrow as pa
import pytest
from disturbances.proxy import FAULTS, Proxy
from rich.console import Console
from small_run import contents, run, write_config

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import ConfigError, RunConfig
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.stages.read.read import Read, ReadConfig
from tokenmill.stages.table.columns import LISTED
from tokenmill.storage import object_store
from tokenmill.storage.object_store import StoreError


@pytest.fixture
def proxy(s3, monkeypatch):
    """A proxy before the moto server, in the AWS variables; it spoils nothing until `share` is set."""
    upstream = object_store.endpoint()
    assert upstream is not None
    with Proxy(upstream, share=0.0, seed=1) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        yield made


@pytest.mark.slow
def test_a_run_through_faults_of_every_kind_leaves_the_same_tables(s3, proxy, undisturbed_run, tmp_path, monkeypatch):
    corpus, expected = undisturbed_run
    storage.upload_folder(corpus, f"{s3}/corpus")
    config = write_config(tmp_path, f"{s3}/corpus", f"{s3}/root")
    proxy.share = 0.05
    run(config)
    proxy.share = 0.0
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{proxy.upstream}")
    assert set(proxy.injected) == set(FAULTS), proxy.injected
    assert proxy.injected.total() > 0.03 * proxy.num_requests
    assert contents(f"{s3}/root", f"{s3}/corpus") == expected


@pytest.mark.parametrize("kind", FAULTS)
def test_bytes_are_whole_whatever_befalls_their_requests(s3, proxy, monkeypatch, kind):
    content = bytes(range(256)) * 40_000
    storage.write_bytes(f"{s3}/large", content)
    storage.write_bytes(f"{s3}/small", b"less than the text of an error")
    monkeypatch.setattr("disturbances.proxy.FAULTS", (kind,))
    proxy.slow_s, proxy.share = 0.05, 0.3
    while proxy.injected.total() < 6:
        assert storage.read_bytes(f"{s3}/large") == content
        assert b"".join(storage.read_chunks(f"{s3}/large")) == content
        assert storage.read_bytes(f"{s3}/small") == b"less than the text of an error"
        storage.write_bytes(f"{s3}/written", content)
        assert storage.list_names(f"{s3}/") == ["large", "small", "written"]
    assert set(proxy.injected) == {kind}
    proxy.share = 0.0
    assert storage.read_bytes(f"{s3}/written") == content


APPEND = """
import sys
import pyarrow as pa
from tokenmill.pipeline.catalog.tables import Catalog
sources = Catalog(sys.argv[1]).sources
sources.create()
row = dict.fromkeys(("etag", "status", "fingerprint", "last_seen_run"), "x") | {"size_bytes": 1}
for number in range(12):
    sources.append(pa.Table.from_pylist([row | {"uri": str(number)}], schema=sources.schema), {})
"""


def test_a_commit_is_made_once_though_its_answer_is_lost(s3, proxy, monkeypatch):
    monkeypatch.setattr("disturbances.proxy.FAULTS", ("lost",))
    proxy.share = 0.2
    subprocess.run([sys.executable, "-c", APPEND, f"{s3}/root"], check=True, timeout=300)
    proxy.share = 0.0
    assert proxy.injected["lost"] > 5
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{proxy.upstream}")  # delta-rs would not let this process answer
    sources = Catalog(f"{s3}/root").sources
    assert sources.version == 12
    assert sorted(map(int, sources.scan(["uri"])["uri"].to_pylist())) == list(range(12))


def test_a_store_that_fails_on_and_on_stops_the_run_and_rejects_nothing(s3, proxy, monkeypatch):
    monkeypatch.setattr(object_store, "ATTEMPTS", 2)
    monkeypatch.setattr(object_store, "_PAUSES_S", (0.1,))
    storage.write_bytes(f"{s3}/a.jpg", b"x")
    monkeypatch.setattr("disturbances.proxy.FAULTS", ("error_500",))
    proxy.share = 1.0
    listed = pa.table({"uri": [f"{s3}/a.jpg"], "size_bytes": [1], "source_caption": [None]}, LISTED)
    with pytest.raises(StoreError, match=r"a.jpg: the store failed again and again.*run the same command again"):
        Read(ReadConfig())(listed)
    proxy.share = 0.0
    assert Read(ReadConfig())(listed)["reject_reason"].to_pylist() == ["unknown_format"]


@pytest.fixture
def no_work(monkeypatch):
    """No worker must start."""
    monkeypatch.setattr("tokenmill.pipeline.run.workers.Workers.__enter__", lambda _: pytest.fail("work was started"))


def refusal(root: str, source: str) -> str:
    with pytest.raises((CatalogError, ConfigError)) as refused:
        run_phases(RunConfig(root=root, sources=[{"uri": source}]), ("curate",), "curate", Console(quiet=True))
    return str(refused.value)


def test_what_cannot_work_says_so_before_work_starts(s3, proxy, no_work, tmp_path, monkeypatch):
    here = str(tmp_path)
    no_bucket = f"no bucket nowhere at {proxy.url}; create it, or correct the address"
    assert refusal("s3://nowhere/root", here) == f"root: s3://nowhere/root: {no_bucket}"
    assert refusal(here, "s3://nowhere/in") == f"sources.0.uri: s3://nowhere/in: {no_bucket}"
    assert "nothing under this prefix; check the address" in refusal(here, f"{s3}/nothing")
    proxy.denied_methods = ("PUT",)
    denied = (
        f"root: {s3}/root/runs/lease: no permission for PutObject (AccessDenied); ask the bucket's owner to grant it"
    )
    assert refusal(f"{s3}/root", here) == denied
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    message = refusal(f"{s3}/root", here)
    assert "no store answers at http://127.0.0.1:9 (EndpointConnectionError); check AWS_ENDPOINT_URL" in message


def test_without_credentials_their_variables_are_named(s3, no_work, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert refusal(f"{s3}/root", str(tmp_path)).endswith("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
