"""The same runs, and the same refusals, in a real object store: Ceph's RADOS gateway."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console
from small_run import contents, end, num_commits, run, start, write_config
from test_damages import in_a_store

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.commands.vacuum import vacuum
from tokenmill.pipeline.config import ConfigError, RunConfig, load
from tokenmill.pipeline.reports.status import document
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.storage import object_store

QUIET = Console(quiet=True)

pytestmark = pytest.mark.slow


@pytest.fixture
def corpus(ceph_s3, undisturbed_run) -> str:
    storage.upload_folder(undisturbed_run[0], f"{ceph_s3}/corpus")
    return f"{ceph_s3}/corpus"


def kill_after(commits: int, table: str, config: Path, root: str) -> None:
    """Start the run; once its `table` has so many commits, see what others are told, and kill it."""
    process = start(config)
    try:
        deadline = time.monotonic() + 300
        while num_commits(root, table) < commits:
            assert process.poll() is None, (
                f"the run ended before it could be killed: {process.communicate()[0][-4000:]}"
            )
            assert time.monotonic() < deadline, "no commits"
            time.sleep(0.05)
        process.send_signal(signal.SIGSTOP)  # it holds the lease still, and does not end while it is looked at
        state = document(load(config))
        assert state["at_work"]["pid"] == process.pid
        assert {row["table"]: row["version"] for row in state["tables"]}[table] >= commits
        with pytest.raises(CatalogError, match=rf"run 20.*pid {process.pid}, since 20.* is at work here; wait for it"):
            run_phases(load(config), ("curate",), "curate", QUIET)
    finally:
        end(process)
    assert document(load(config))["at_work"] is None


def test_kill_9_in_mid_run_and_the_same_command_leave_the_tables_of_a_local_run(
    ceph_s3, corpus, undisturbed_run, tmp_path
):
    expected = undisturbed_run[1]
    root = f"{ceph_s3}/root"
    config = write_config(tmp_path, corpus, root)
    for table in ("media", "tokens"):
        kill_after(2, table, config, root)
        assert 0 < getattr(Catalog(root), table).count() < len(expected[table])
    run(config)
    assert contents(root, corpus) == expected
    vacuum(load(config), 0, False, QUIET)
    for each in Catalog(root):
        files = [f"{each.uri}/{name}" for name in storage.list_names(each.uri) if name.endswith(".parquet")]
        assert files == each.files(), "orphans of killed runs and files of older versions are deleted"
    assert contents(root, corpus) == expected


def test_an_upload_that_a_killed_writer_left_is_dropped(ceph_s3):
    catalog = Catalog(f"{ceph_s3}/root")
    catalog.create()
    store, bucket = object_store.client(), ceph_s3.removeprefix("s3://")
    where = {"Bucket": bucket, "Key": "root/tokens/part-0.parquet"}
    upload = store.create_multipart_upload(**where)["UploadId"]
    store.upload_part(**where, UploadId=upload, PartNumber=1, Body=b"x" * 1000)
    config = RunConfig(root=catalog.root, sources=[{"uri": ceph_s3}])
    for hours, dry_run, num_dropped in ((0, True, 1), (1, False, 0), (0, False, 1), (0, False, 0)):
        assert vacuum(config, hours, dry_run, QUIET)["unfinished uploads"] == num_dropped, (hours, dry_run)
    assert not store.list_multipart_uploads(Bucket=bucket).get("Uploads")


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


def test_who_may_only_read_is_told_before_work_starts(ceph_s3, tmp_path, monkeypatch):
    bucket = ceph_s3.removeprefix("s3://")
    allowed = {"Effect": "Allow", "Principal": {"AWS": ["arn:aws:iam:::user/guest"]}}
    allowed |= {"Action": ["s3:ListBucket", "s3:GetObject"]}
    allowed |= {"Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    object_store.client().put_bucket_policy(Bucket=bucket, Policy=policy)
    storage.write_bytes(f"{ceph_s3}/corpus/a.txt", b"words")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "guest")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guestsecret")
    assert storage.read_bytes(f"{ceph_s3}/corpus/a.txt") == b"words"
    config = RunConfig(root=f"{ceph_s3}/root", sources=[{"uri": f"{ceph_s3}/corpus"}])
    with pytest.raises(CatalogError, match=rf"root: {ceph_s3}/root/runs/lease: no permission for PutObject .*owner"):
        run_phases(config, ("curate",), "curate", QUIET)


def test_random_damages_are_mended_by_what_hung_on_them(ceph_s3, tmp_path):
    in_a_store(tmp_path, ceph_s3, seed=2, num_rounds=2)
