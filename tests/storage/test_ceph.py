"""The same runs, and the same refusals, in a real object store: Ceph's RADOS gateway."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console
from small_run import contents, end, num_versions, run, start, write_config

from pipeline.catalog import Catalog, CatalogError
from pipeline.config import ConfigError, RunConfig
from pipeline.line import run_phases
from tokenizer import storage

QUIET = Console(quiet=True)

pytestmark = pytest.mark.slow


@pytest.fixture
def corpus(ceph_s3, undisturbed_run) -> str:
    storage.upload_folder(undisturbed_run[0], f"{ceph_s3}/corpus")
    return f"{ceph_s3}/corpus"


def test_kill_9_in_mid_run_and_the_same_command_leave_the_tables_of_a_local_run(
    ceph_s3, corpus, undisturbed_run, tmp_path
):
    root = f"{ceph_s3}/root"
    config = write_config(tmp_path, corpus, root)
    first = start(config)
    try:
        deadline = time.monotonic() + 200
        while num_versions(root) < 2 and time.monotonic() < deadline:
            assert first.poll() is None, "the run ended before it could be killed"
            time.sleep(0.1)
    finally:
        end(first)
    assert 0 < Catalog(root).media.count() < len(undisturbed_run[1]["media"])
    run(config)
    assert contents(root, corpus) == undisturbed_run[1]


def source_rows(catalog: Catalog, uri: str):
    row = dict.fromkeys(("etag", "status", "fingerprint", "last_seen_run"), "x") | {"uri": uri, "size_bytes": 1}
    return catalog.sources.schema.empty_table().from_pylist([row], schema=catalog.sources.schema)


def test_of_two_writers_of_one_version_one_wins(ceph_s3):
    writers = [Catalog(f"{ceph_s3}/root") for _ in range(4)]
    writers[0].create()
    for catalog in writers:
        assert catalog.sources.version == 0

    def write(catalog: Catalog) -> bool:
        try:
            catalog.sources.append(source_rows(catalog, f"s3://{id(catalog)}"), {})
        except CatalogError as error:
            assert "commit failed" in str(error)
            return False
        return True

    with ThreadPoolExecutor(len(writers)) as pool:
        won = list(pool.map(write, writers))
    assert sum(won) == 1
    after = Catalog(f"{ceph_s3}/root").sources
    assert after.version == 1
    assert after.scan(["uri"])["uri"].to_pylist() == [f"s3://{id(writers[won.index(True)])}"]


def test_a_conditional_write_replaces_only_what_it_expects(ceph_s3):
    uri = f"{ceph_s3}/a/lease"
    assert not storage.swap_bytes(uri, b"1", b"0"), "there is no object"
    assert storage.swap_bytes(uri, b"1", None)
    assert not storage.swap_bytes(uri, b"2", None)
    assert not storage.swap_bytes(uri, b"2", b"0")
    assert storage.swap_bytes(uri, b"2", b"1")
    assert storage.read_bytes(uri) == b"2"


@pytest.mark.parametrize(
    ("access_key", "secret_key", "expected"),
    [
        ("testkey", "wrong", r"refuses the credentials \(SignatureDoesNotMatch\); correct AWS_ACCESS_KEY_ID"),
        ("nobody", "testsecret", r"refuses the credentials \(InvalidAccessKeyId\); correct AWS_ACCESS_KEY_ID"),
        ("guest", "guestsecret", r"no permission .*AccessDenied.*ask the bucket's owner"),
    ],
)
def test_who_may_not_is_told_before_work_starts(ceph_s3, tmp_path, monkeypatch, access_key, secret_key, expected):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret_key)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(CatalogError, match=f"root: {ceph_s3}/root: .*{expected}"):
        run_phases(RunConfig(root=f"{ceph_s3}/root", sources=[{"uri": str(tmp_path)}]), ("curate",), "curate", QUIET)
    with pytest.raises(ConfigError, match=f"sources.0.uri: {ceph_s3}/corpus: .*{expected}"):
        run_phases(RunConfig(root=str(tmp_path), sources=[{"uri": f"{ceph_s3}/corpus"}]), ("curate",), "curate", QUIET)
