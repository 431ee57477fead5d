"""A real object store for the tests of this folder, where one is installed."""

import os
import uuid
from collections.abc import Iterator

import ceph
import pytest

from tokenmill.storage import object_store

USERS = {"testkey": "testsecret", "guest": "guestsecret"}


@pytest.fixture(scope="session")
def ceph_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of Ceph's gateway, one for all tests."""
    if missing := ceph.missing():
        pytest.skip(f"not installed: {', '.join(missing)}; apt-get install --no-install-recommends {ceph.PACKAGES}")
    with ceph.gateway(tmp_path_factory.mktemp("ceph") / "store", USERS) as endpoint:
        yield endpoint


@pytest.fixture
def ceph_s3(ceph_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket in Ceph as an s3:// URI; the AWS variables name its owner."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", ceph_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testkey")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    object_store.client().create_bucket(Bucket=bucket)
    return f"s3://{bucket}"
