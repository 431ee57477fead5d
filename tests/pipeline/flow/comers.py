"""A flow of rows that take a moment each, on a Ray cluster whose nodes come and go:
`python comers.py ROOT ADDRESS NUM_ROWS MAX_NODES [ROW_S BATCH_ROWS]`. Which node did a row, and when, stands in
ROOT.log, a line for each time; the last line that is said tells how it went, as JSON.
"""

import json
import sys
import time
from typing import Any

import pyarrow as pa
import ray
from rich.console import Console

from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import Cluster, Nodes
from tokenmill.pipeline.flow.flow import Sink
from tokenmill.pipeline.phases import Pool
from tokenmill.pipeline.reports.terminal import Meter, PhaseReport
from tokenmill.pipeline.run import pools
from tokenmill.pipeline.run.workers import Workers
from tokenmill.stages.table.columns import LISTED, MEDIA
from tokenmill.stages.table.rows import without

DONE = without(MEDIA, "fingerprint", "run_id")


class Slow:
    """Rows that are kept."""

    reads = LISTED
    writes = DONE
    drops: tuple[str, ...] = ()
    rows = "same"

    def __init__(self, log: str, row_s: float):
        self._log, self._row_s, self._node = log, row_s, ray.get_runtime_context().get_node_id()

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = []
        for uri in table["uri"].to_pylist():
            with open(self._log, "a") as log:
                log.write(f"{self._node} {time.time():.2f} {uri}\n")
            time.sleep(self._row_s)
            rows.append({"media_id": uri, "file_id": uri, "kind": "image", "uri": uri})
        return pa.Table.from_pylist(rows, schema=DONE)


def main(root: str, address: str, num_rows: int, max_nodes: int, row_s: float = 0.25, batch_rows: int = 4) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    config = Cluster(
        address=address,
        commit_every_s=1.0 if row_s > 0.1 else 30.0,
        stall_s=3.0,
        nodes=Nodes(wait_s=0.0, max_nodes=max_nodes or None),
    )
    catalog = Catalog(root)
    catalog.create()

    committed: list[str] = []

    def commit(shard: Any, keys: pa.Table) -> None:
        committed.extend(keys["uri"].to_pylist())
        catalog.media.commit([shard] if shard else [], [], {})

    def reject(row: pa.Table, reason: str, detail: str) -> pa.Table:
        raise AssertionError(f"{reason}: {detail}")

    uris = [f"row {number}" for number in range(num_rows)]
    todo = pa.table({"uri": uris, "size_bytes": [1] * num_rows, "source_caption": [None] * num_rows}, LISTED)
    sink = Sink(root, "media", {"fingerprint": "f", "run_id": "r"}, ["media_id", "uri", "reject_reason"], commit,
                pa.chunked_array([[]], pa.string()))  # fmt: skip
    phase = pools.PhaseStages("slow", LISTED, ((((Slow, (root + ".log", row_s)),), Pool(batch_rows=batch_rows)),))
    console, report = Console(width=200), PhaseReport("slow")
    with Workers(config) as workers, Meter(console, report, num_rows, "rows") as meter, workers.watching(meter):
        workers.start_ray()
        before = time.process_time()
        workers.run(phase, todo, "uri", sink, meter, reject)
        cpu_s = time.process_time() - before
    told = {"cpu_s": cpu_s, "rows_per_s": report.rows_per_s, "pools": report.numbers["pools"]}
    told["is_in_order"] = committed == uris
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:5]), *map(float, sys.argv[5:6]), *map(int, sys.argv[6:7]))
