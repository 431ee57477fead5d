"""Rows to do -> shards -> commits, whoever computes: what a flow on Ray and one in worker processes here have in
common.

Blocks of rows go through a pool of workers in order; every few seconds the finished ones become one Parquet shard,
whose key columns tell the driver which rows are new, and the shard is committed. A worker that dies, or is ended
because a medium hangs in it (stages/table/limits.py), takes its block with it; the worker that takes over does the
block anew and knows what the one before had at hand. Where that is not enough, for what kills a worker without being
at hand, rows are tried one by one in workers of their own, and one that no worker survives is rejected. All the rest
goes on. Blocks of a machine that died are done by others, and no row is to blame for it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenmill import storage
from tokenmill.pipeline.catalog.shard_files import Shard
from tokenmill.pipeline.config import Cluster
from tokenmill.pipeline.phases import Pool
from tokenmill.pipeline.reports.terminal import Meter
from tokenmill.stages.table.chain import StageSpec
from tokenmill.stages.table.columns import KNOWN
from tokenmill.stages.table.limits import Limits

_FIRST_COMMIT_S = 5.0
_COMMIT_SHARE = 0.25  # of the time so far
_LEAVE_WITHIN_S = 20.0  # with what is finished, where something else went wrong

Reject = Callable[[pa.Table, str, str], pa.Table]


class Containers(Protocol):
    """How the rows of containers are divided, when a worker dies over one, and ended."""

    def smaller(self, row: pa.Table) -> list[pa.Table]:
        """The row as rows of fewer members; none when it cannot be divided."""
        ...

    def ending(self, row: pa.Table) -> pa.Table:
        """Keys that say that all members of the container were read."""
        ...


class Writer(Protocol):
    """Who turns finished blocks, in the form that its flow has them, into shards (pipeline/flow/writer.py)."""

    limit_s: float | None  # of a write where others do it, who may be lost; null: none

    def verdicts(self, *blocks: Any) -> dict[str | None, int]:
        """Verdicts on these blocks and on those asked of before, as far as they are known by now."""
        ...

    def write(self, *blocks: Any) -> tuple[Shard, pa.Table]:
        """One shard, and the key columns of its rows."""
        ...

    def rewrite(self, shard: Shard, keep: pa.BooleanArray) -> Shard:
        """The shard with only the rows to keep, as a new file."""
        ...


@dataclass(frozen=True)
class Group:
    """Neighbouring stages that share a pool of workers."""

    stages: tuple[StageSpec, ...]
    pool: Pool
    workers: int  # to begin with
    is_on_cluster: bool = False  # whose machines may come and go meanwhile

    @property
    def grows(self) -> bool:
        """Whether it takes more workers when machines come; as many as `pool.workers` where that is said."""
        return self.is_on_cluster and (self.pool.workers is None or self.pool.workers > self.workers)

    @property
    def told(self) -> str:
        """How many workers there are to begin with; `+` where machines that come bring more."""
        return f"{self.workers}{'+' if self.grows else ''} x {self.pool.num_cpus:g} CPU"


@dataclass
class Sink:
    """Where a phase's rows go: the table, the constant columns, and what the driver does with a finished shard."""

    root: str
    table: str
    constants: dict[str, str]
    keys: list[str]
    commit: Callable[[Shard | None, pa.Table], None]  # (shard of the new rows, key columns of all rows)
    known: pa.ChunkedArray  # ids of rows (`row_ids`) that are in the table already
    banned: pa.Array | None = None  # media_ids and file_ids that must not enter it

    def take(self, writer: Writer, blocks: list[Any]) -> pa.Table:
        """Write `blocks` as a shard without the rows that are known, commit it, return all keys."""
        shard, keys = writer.write(*blocks)
        ids = row_ids(keys)
        first = pc.equal(pc.index_in(ids, value_set=ids), pa.array(range(len(ids)), pa.int32()))
        fresh = pc.and_(first, pc.invert(pc.is_in(ids, value_set=self.known.combine_chunks())))
        for name in ("media_id", "file_id"):
            if self.banned is not None and name in keys.schema.names:
                fresh = pc.and_(fresh, pc.invert(pc.is_in(keys[name].combine_chunks(), value_set=self.banned)))
        if "reject_reason" in keys.schema.names:
            reasons = keys["reject_reason"].combine_chunks()
            fresh = pc.and_(fresh, pc.invert(pc.fill_null(pc.equal(reasons, KNOWN), False)))
        num_fresh = pc.sum(fresh).as_py() or 0
        written = storage.join(self.root, self.table, shard.name)
        if 0 < num_fresh < len(ids):
            shard = writer.rewrite(shard, fresh)
        if num_fresh < len(ids):
            storage.delete_file(written)
        self.known = pa.chunked_array([*self.known.chunks, ids.filter(fresh)], pa.string())
        keys = keys.append_column("is_fresh", fresh)
        self.commit(shard if num_fresh else None, keys)
        return keys


def row_ids(keys: pa.Table) -> pa.Array:
    """What no two rows of a table share: the medium, and of a caption its span."""
    ids = keys["media_id"].combine_chunks()
    if "span" not in keys.schema.names:
        return ids
    return pc.binary_join_element_wise(ids, pc.fill_null(pc.cast(keys["span"].combine_chunks(), pa.string()), ""), ":")


@dataclass
class Flow:
    """One phase's work. `key` names the column that leads a result back to its row of `todo`."""

    groups: list[Group]
    todo: pa.Table
    key: str
    sink: Sink
    config: Cluster
    meter: Meter
    reject: Reject  # (row, reason, detail) -> the rejected row of one that no worker survived
    containers: Containers | None = None

    @property
    def limits(self) -> Limits:
        """Of each medium."""
        return Limits(self.config.medium_timeout_s, self.config.medium_memory_bytes)

    @property
    def num_containers(self) -> int:
        """Rows of `todo` that are containers of media."""
        if self.containers is None:
            return 0
        return pc.sum(pc.not_equal(self.todo["container"], "captions")).as_py() or 0

    def blocks(self) -> list[pa.Table]:
        """`todo` cut into what workers take one at a time."""
        return blocks_of(self.todo, self.groups[0].pool.batch_rows)


class Collector:
    """Finished blocks of a flow, on their way to shards and commits."""

    def __init__(self, flow: Flow, writer: Writer):
        self._flow, self._writer = flow, writer
        self._seen: list[pa.ChunkedArray] = []
        self._pending: list[Any] = []
        self._num_pending = 0
        self._started = self._last = 0.0
        self._is_writing = False

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """While blocks are added; all are committed then, also those finished before something ended the flow: a stage
        raised, or a person. Not where writing or committing them failed.
        """
        try:
            yield
        except BaseException:
            if not self._is_writing:
                self._writer.limit_s = _LEAVE_WITHIN_S
                with suppress(Exception):
                    self.flush()
            raise
        self.flush()

    def add(self, blocks: list[Any], num_rows: int) -> None:
        """Results of a block, in the order of the blocks; written and committed when it is time."""
        flow, now = self._flow, time.monotonic()
        if not self._started:
            self._started = self._last = now
        if num_rows:
            self._pending += blocks
            self._num_pending += num_rows
            flow.meter.judged(self._writer.verdicts(*blocks))
        if not flow.num_containers:
            flow.meter.arrived(flow.groups[-1].pool.batch_rows)
        # Short runs show early what they keep, and write while workers still score.
        every_s = min(flow.config.commit_every_s, max(_FIRST_COMMIT_S, _COMMIT_SHARE * (now - self._started)))
        if self._num_pending >= flow.config.shard_rows or now - self._last >= every_s:
            self.flush()

    def flush(self) -> None:
        """Write and commit what is pending."""
        self._is_writing = True
        if self._pending:
            keys = self._flow.sink.take(self._writer, self._pending)
            self._writer.verdicts()  # what is still unsaid is of rows that are committed now
            ended = _ended(keys)
            self._seen.append(ended[self._flow.key])
            if self._flow.num_containers:
                self._flow.meter.unpacked(keys.num_rows, len(pc.unique(ended[self._flow.key])))
            self._flow.meter.settled(keys)
            self._pending = []
        self._num_pending, self._last = 0, time.monotonic()
        self._is_writing = False

    @property
    def seconds(self) -> float:
        """Since the first result."""
        return time.monotonic() - self._started if self._started else 0.0

    def retry_lost(self, isolated: "Isolated", as_block: Callable[[pa.Table], Any], batch_rows: int = 1) -> None:
        """Rows that went with workers that died: `batch_rows` at a time, and one by one where a row of these may be the
        cause. `as_block` makes of a result what `writer` takes.
        """
        flow = self._flow
        done = pa.chunked_array([chunk for column in self._seen for chunk in column.chunks], pa.string())
        lost = flow.todo.filter(pc.invert(pc.is_in(flow.todo[flow.key], value_set=done.combine_chunks())))
        if not lost.num_rows:
            return
        flow.meter.lost(lost.num_rows)
        for block in blocks_of(lost, batch_rows):
            result = isolated(block) if block.num_rows > 1 else None
            if isinstance(result, pa.Table):
                flow.meter.settled(flow.sink.take(self._writer, [as_block(result)]))
                flow.meter.arrived(block.num_rows)
                continue
            for row in blocks_of(block, 1):
                self._retry_row(row, isolated, as_block)

    def _retry_row(self, row: pa.Table, isolated: "Isolated", as_block: Callable[[pa.Table], Any]) -> None:
        flow = self._flow
        parts = [] if flow.containers is None else flow.containers.smaller(row)
        for result in _tried(parts or [row], isolated, flow.reject, flow.containers):
            flow.meter.settled(flow.sink.take(self._writer, [as_block(result)]))
        if flow.containers is not None and parts:
            flow.sink.commit(None, flow.containers.ending(row))
        flow.meter.arrived(1)


Isolated = Callable[[pa.Table], pa.Table | tuple[str, str]]
"""The result of rows in workers of their own, or reason and detail of their death."""


def blocks_of(todo: pa.Table, batch_rows: int) -> list[pa.Table]:
    """`todo` cut into the blocks that workers take one at a time; a container is a block of its own."""
    is_container = np.zeros(todo.num_rows, bool)
    if "container" in todo.schema.names:
        is_container = pc.is_valid(todo["container"]).to_numpy()
    blocks, start = [], 0
    for end in [*np.flatnonzero(is_container).tolist(), todo.num_rows]:
        blocks += [todo.slice(at, min(batch_rows, end - at)) for at in range(start, end, batch_rows)]
        blocks += [todo.slice(end, 1)] if end < todo.num_rows else []
        start = end + 1
    return [block.combine_chunks() for block in blocks]


def _ended(keys: pa.Table) -> pa.Table:
    """Rows of what was read to its end: all but those of a container whose last member is still to come."""
    if "ends_container" not in keys.schema.names:
        return keys
    return keys.filter(pc.or_(pc.is_null(keys["member"]), pc.fill_null(keys["ends_container"], False)))


def _tried(
    rows: list[pa.Table], isolated: Isolated, reject: Reject, containers: Containers | None
) -> Iterator[pa.Table]:
    """Results of rows, each in workers of its own; a row that no worker survives is divided, then rejected."""
    for row in rows:
        result = isolated(row)
        if isinstance(result, pa.Table):
            yield result
        elif parts := [] if containers is None else containers.smaller(row):
            yield from _tried(parts, isolated, reject, containers)
        else:
            yield reject(row, *result)
