"""A file that kills its worker, and one that hangs it, become rejected rows; on Ray and in processes here alike."""

import time
from collections import Counter
from typing import Any

import deadly
import pyarrow as pa
import pytest
import ray
from deadly import DONE, Deadly
from rich.console import Console

from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import Cluster
from tokenmill.pipeline.flow import flow, local, on_ray
from tokenmill.pipeline.flow.writer import ShardWriter
from tokenmill.pipeline.phases import Pool
from tokenmill.pipeline.reports.terminal import Meter, PhaseReport
from tokenmill.stages.table.columns import LISTED


def reject(row: pa.Table, reason: str, detail: str) -> pa.Table:
    uri = row["uri"][0].as_py()
    values = {"media_id": uri, "file_id": uri, "kind": "unknown", "uri": uri}
    return pa.Table.from_pylist([{**values, "reject_reason": reason, "reject_detail": detail}], schema=DONE)


def make_flow(catalog: Catalog, uris: list[str], meter: Meter) -> flow.Flow:
    todo = pa.table({"uri": uris, "size_bytes": [1] * len(uris), "source_caption": [None] * len(uris)}, LISTED)

    def commit(shard: Any, keys: pa.Table) -> None:
        catalog.media.commit([shard] if shard else [], [], {})

    constants, keys = {"fingerprint": "f", "run_id": "r"}, ["media_id", "uri", "reject_reason"]
    sink = flow.Sink(catalog.root, "media", constants, keys, commit, pa.chunked_array([[]], pa.string()))
    group = flow.Group(((Deadly, ()),), Pool(num_cpus=0.5, batch_rows=3), 2)
    config = Cluster(num_cpus=2, medium_timeout_s=1.5, medium_memory_bytes=1 << 28)
    return flow.Flow([group], todo, "uri", sink, config, meter, reject)


@pytest.fixture
def catalog(tmp_path):
    made = Catalog(str(tmp_path))
    made.create()
    return made


@pytest.mark.parametrize("where", ["here", pytest.param("ray", marks=pytest.mark.service)])
def test_deadly_rows_are_rejected_and_their_neighbours_kept(catalog, tmp_path, monkeypatch, request, where):
    log = tmp_path / "log"
    log.mkdir()
    deadly_rows = {"kill": "worker_died", "hang": "timed_out", "kill unseen": "worker_died", "bomb": "out_of_memory"}
    uris = [*(f"good {number}" for number in range(9)), "kill", "hang", "bomb", "good 9", "good 10", "kill unseen"]
    report = PhaseReport("test")
    with Meter(Console(quiet=True), report, len(uris), "rows") as meter:
        made = make_flow(catalog, uris, meter)
        if where == "ray":
            request.getfixturevalue("local_ray")
            ray.cloudpickle.register_pickle_by_value(deadly)
            monkeypatch.setattr(deadly, "LOG", str(log / "tried"))
            on_ray.run(made)
        else:
            monkeypatch.setenv("TMPDIR", str(log))
            workers = local.LocalWorkers()
            workers.run(made)
            workers.end()
    found = {row["uri"]: row["reject_reason"] for row in catalog.media.scan(["uri", "reject_reason"]).to_pylist()}
    assert found == dict.fromkeys(uris) | deadly_rows
    assert (report.num_seen, report.num_kept) == (15, 11)
    assert report.numbers["pools"][0]["workers"] == 2
    tried = Counter((log / "tried").read_text().split("\n"))
    assert tried["hang"] == 1, "it costs its time limit once"
    assert tried["bomb"] == 1
    # Ray may give the block of a worker that died to the other one, which knows nothing of that death.
    assert tried["kill"] in ([2] if where == "here" else [2, 3, 4])


def test_a_mistake_of_a_stage_is_raised_here_and_leaves_no_process(catalog):
    workers = local.LocalWorkers()
    with Meter(Console(quiet=True), PhaseReport("test"), 4, "rows") as meter:
        made = make_flow(catalog, ["raise", "hang", "good"], meter)
        started = time.monotonic()
        with pytest.raises(ValueError, match="a mistake of the stage") as raised:
            workers.run(made)
    assert "deadly.py" in "".join(raised.value.__notes__), "where it happened, in the other process"
    assert time.monotonic() - started < 30 and not workers._all


def test_what_is_finished_when_a_stage_raises_is_committed(catalog):
    with Meter(Console(quiet=True), PhaseReport("test"), 9, "rows") as meter:
        made = make_flow(catalog, ["a", "b", "c", "d", "e", "f", "raise", "g", "h"], meter)
        with pytest.raises(ValueError, match="a mistake of the stage"):
            local.LocalWorkers().run(made)
    assert catalog.media.scan(["uri"])["uri"].to_pylist() == list("abcdef")


class Writer(ShardWriter):
    """Counts what it writes."""

    num_written = 0

    def write(self, *blocks: pa.Table) -> tuple[Any, pa.Table]:
        self.num_written += 1
        return super().write(*blocks)


def done(*uris: str) -> pa.Table:
    return pa.Table.from_pylist(
        [{"media_id": uri, "file_id": uri, "kind": "image", "uri": uri} for uri in uris], schema=DONE
    )


def test_an_interrupted_flow_commits_what_is_finished(catalog):
    with Meter(Console(quiet=True), PhaseReport("test"), 3, "rows") as meter:
        made = make_flow(catalog, ["a", "b", "c"], meter)
        collector = flow.Collector(made, Writer(catalog.root, "media", made.sink.constants, made.sink.keys))
        with pytest.raises(KeyboardInterrupt), collector.collecting():
            collector.add([done("a", "b")], 2)
            assert catalog.media.count() == 0
            raise KeyboardInterrupt
    assert catalog.media.scan(["uri"])["uri"].to_pylist() == ["a", "b"]


@pytest.mark.parametrize("error", [OSError("the store"), KeyboardInterrupt()])
def test_what_fails_while_it_is_committed_is_not_tried_again(catalog, error):
    def fails(*_: Any) -> None:
        raise error

    with Meter(Console(quiet=True), PhaseReport("test"), 3, "rows") as meter:
        made = make_flow(catalog, ["a", "b", "c"], meter)
        made.sink.commit, made.config = fails, made.config.model_copy(update={"shard_rows": 1})
        writer = Writer(catalog.root, "media", made.sink.constants, made.sink.keys)
        collector = flow.Collector(made, writer)
        with pytest.raises(type(error)), collector.collecting():
            collector.add([done("a", "b")], 2)
    assert (writer.num_written, catalog.media.count()) == (1, 0)
