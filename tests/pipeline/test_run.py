"""A file that kills its worker, and one that hangs it, become rejected rows; their neighbours are kept."""

import ctypes
import os
import signal
import sys
from typing import Any

import pyarrow as pa
import ray
from rich.console import Console

from pipeline import run
from pipeline.catalog import Catalog
from pipeline.config import Cluster, Pool
from pipeline.report import Meter, PhaseReport
from stages import limits
from stages.columns import LISTED, MEDIA
from stages.rows import without

DONE = without(MEDIA, "fingerprint", "run_id")


class Deadly:
    """Ends its process on `kill`, never returns on `hang`, and holds the interpreter's lock meanwhile."""

    reads = LISTED
    writes = DONE
    drops: tuple[str, ...] = ()
    rows = "same"

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = []
        for uri in table["uri"].to_pylist():
            with limits.medium():
                if uri == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if uri == "hang":
                    ctypes.PyDLL(None).sleep(1000)
            rows.append({"media_id": uri, "file_id": uri, "kind": "image", "uri": uri})
        return pa.Table.from_pylist(rows, schema=DONE)


def test_deadly_rows_are_rejected_and_their_neighbours_kept(tmp_path, monkeypatch, local_ray):
    monkeypatch.setattr(run, "_START_S", 5.0)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    uris = [*(f"good {number}" for number in range(9)), "kill", "hang", "good 9"]
    todo = pa.table({"uri": uris, "size_bytes": [1] * 12, "source_caption": [None] * 12}, LISTED)
    catalog = Catalog(str(tmp_path))
    catalog.create()
    config = Cluster(num_cpus=2, medium_timeout_s=4.0)
    group = run.Group(((Deadly, ()),), Pool(num_cpus=0.5, batch_rows=3), 2)
    constants = {"fingerprint": "f", "run_id": "r"}

    def commit(shard: Any, keys: pa.Table) -> None:
        catalog.media.commit([shard] if shard else [], [], {})

    def reject(row: pa.Table, reason: str, detail: str) -> pa.Table:
        uri = row["uri"][0].as_py()
        values = {"media_id": uri, "file_id": uri, "kind": "unknown", "uri": uri}
        return pa.Table.from_pylist([{**values, "reject_reason": reason, "reject_detail": detail}], schema=DONE)

    report = PhaseReport("test")
    keys = ["media_id", "uri", "reject_reason"]
    with Meter(Console(quiet=True), report, len(uris), "rows") as meter:
        sink = run.Sink(catalog.root, "media", constants, keys, commit, pa.chunked_array([[]], pa.string()))
        run.run_flow([group], todo, "uri", sink, config, meter, reject)
    found = {row["uri"]: row["reject_reason"] for row in catalog.media.scan(["uri", "reject_reason"]).to_pylist()}
    assert found == dict.fromkeys(uris) | {"kill": "worker_died", "hang": "timed_out"}
    assert (report.num_seen, report.num_kept) == (12, 10)
