"""Requests that fail in every way of a network change no row, and what cannot work says so before work starts."""

import pytest
from proxy import FAULTS, Proxy
from small_run import contents, run, write_config

from tokenizer import object_store, storage


@pytest.fixture
def proxy(s3, monkeypatch):
    """A proxy before the moto server, in the AWS variables; it spoils nothing until `share` is set."""
    upstream = object_store.endpoint()
    assert upstream is not None
    with Proxy(upstream, share=0.0, seed=1) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        yield made


def test_a_run_through_faults_of_every_kind_leaves_the_same_tables(s3, proxy, undisturbed_run, tmp_path):
    corpus, expected = undisturbed_run
    storage.upload_folder(corpus, f"{s3}/corpus")
    config = write_config(tmp_path, f"{s3}/corpus", f"{s3}/root")
    proxy.share = 0.05
    run(config)
    proxy.share = 0.0
    assert set(proxy.injected) == set(FAULTS), proxy.injected
    assert proxy.injected.total() > 0.03 * proxy.num_requests
    assert contents(f"{s3}/root", f"{s3}/corpus") == expected
