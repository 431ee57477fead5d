"""One phase on Ray: rows to do go through pools of stage actors, their blocks become shards, shards become commits.

The driver holds references to blocks, not their rows: every `commit_every_s` seconds a task writes the finished blocks
as one Parquet shard and returns its key columns, from which duplicates are found before the commit. Order is
preserved, so that which of two equal files becomes the medium does not depend on timing. Neighbouring stages with one
pool run in one process and hand tables over in memory: a decoded picture never crosses the object store.

A worker that dies, or is ended because a medium hangs in it (stages/limits.py), takes its block with it; those rows are
tried again one by one in a worker of their own, and a row that hangs it, or kills two more, is rejected. All the rest
goes on.
"""

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.annotations import RayDeprecationWarning

from pipeline import writer
from pipeline.busy import pools_used
from pipeline.catalog import Shard
from pipeline.config import Cluster, Pool
from pipeline.report import Meter
from stages.chain import Chain, StageSpec
from stages.columns import KNOWN
from tokenizer import storage

_RETRIES = 1
_LIVES = 2  # workers that a row may kill once it is alone: 1 rejects what a lost machine had at work, many take long
_WRITER_RESTARTS = 10  # without a limit, blocks that no memory holds would be tried for ever
_FIRST_COMMIT_S = 5.0
_COMMIT_SHARE = 0.25  # of the time so far
_LOOK_EVERY_S = 1.0
_START_S = 30.0  # a worker's imports and models
_CONTAINER_BLOCK_BYTES = 1 << 20  # of results, so that a tar's are committed while it is read


class Containers(Protocol):
    """How the rows of containers are divided, when a worker dies over one, and ended."""

    def smaller(self, row: pa.Table) -> list[pa.Table]:
        """The row as rows of fewer members; none when it cannot be divided."""
        ...

    def ending(self, row: pa.Table) -> pa.Table:
        """Keys that say that all members of the container were read."""
        ...


class _Worker(Chain):
    """A Chain whose results leave it as they come: one row may be a tar of thousands."""

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:  # type: ignore[override]
        yield from self.stream(table)


@dataclass(frozen=True)
class Group:
    """Neighbouring stages that share a pool of actors."""

    stages: tuple[StageSpec, ...]
    pool: Pool
    workers: int


@contextmanager
def cluster(config: Cluster) -> Iterator[None]:
    """Ray for the length of a command: an existing cluster, or one started here and ended with the command."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if ray.is_initialized():
        yield
        return
    # Without an address Ray joins whatever cluster was started on this machine.
    own: dict[str, Any] = {"address": "local", "num_cpus": config.num_cpus, "include_dashboard": False}
    how = {"address": config.address} if config.address else own
    with _silent_stderr():
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **how)
    # No named parameter sets the retries of a task yet, and without a limit a deadly file would be tried for ever.
    warnings.filterwarnings("ignore", category=RayDeprecationWarning)
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.max_errored_blocks = -1
    try:
        yield
    finally:
        ray.shutdown()


@dataclass
class Sink:
    """Where a phase's rows go: the table, the constant columns, and what the driver does with a finished shard."""

    root: str
    table: str
    constants: dict[str, str]
    keys: list[str]
    commit: Callable[[Shard | None, pa.Table], None]  # (shard of the new rows, key columns of all rows)
    known: pa.ChunkedArray  # media_ids that are in the table already
    banned: pa.Array | None = None  # media_ids and file_ids that must not enter it

    def __post_init__(self) -> None:
        actor: Any = writer.Writer
        # A writer that dies comes back: a shard half written was never committed, and is written anew.
        lives = actor.options(max_restarts=_WRITER_RESTARTS, max_task_retries=_WRITER_RESTARTS)
        self._writer = lives.remote(self.root, self.table, self.constants, self.keys)

    def take(self, blocks: list[Any]) -> pa.Table:
        """Write `blocks` (references) as a shard without the rows that are known, commit it, return all keys."""
        shard, keys = ray.get(self._writer.write.remote(*blocks))
        ids = keys["media_id"].combine_chunks()
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
            shard = ray.get(self._writer.rewrite.remote(shard, fresh))
        if num_fresh < len(ids):
            storage.delete_file(written)
        self.known = pa.chunked_array([*self.known.chunks, ids.filter(fresh)], pa.string())
        keys = keys.append_column("is_fresh", fresh)
        self.commit(shard if num_fresh else None, keys)
        return keys


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Ray's C++ core writes about its own log level to file descriptor 2; errors of ray.init are Python exceptions."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _worker_options() -> dict[str, Any]:
    return {"max_task_retries": _RETRIES}


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


def run_flow(
    groups: list[Group],
    todo: pa.Table,
    key: str,
    sink: Sink,
    config: Cluster,
    meter: Meter,
    reject: Callable[[pa.Table, str, str], pa.Table],
    containers: Containers | None = None,
) -> None:
    """Send `todo` through `groups` into `sink`. `key` names the column that leads a result back to its row of `todo`.

    `reject(row, reason, detail)` makes the rejected row of one that no worker survived; `containers` divides rows that
    are containers. Raises what a stage raised.
    """
    if not todo.num_rows:
        return
    num_containers = 0 if containers is None else todo.num_rows - todo["container"].null_count
    if num_containers and len(groups) == 1:
        DataContext.get_current().target_max_block_size = _CONTAINER_BLOCK_BYTES
    blocks = blocks_of(todo, groups[0].pool.batch_rows)
    dataset: ray.data.Dataset = ray.data.from_arrow(blocks)
    num_workers = [min(group.workers, len(blocks)) for group in groups]
    for number, group in enumerate(groups):
        dataset = dataset.map_batches(
            _Worker,
            fn_constructor_args=(group.stages, config.medium_timeout_s),
            batch_size=None if number == 0 else group.pool.batch_rows,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=num_workers[number]),
            num_cpus=group.pool.num_cpus,
            num_gpus=group.pool.num_gpus,
            ray_remote_args_fn=_worker_options,
        )
    seen: list[pa.ChunkedArray] = []
    pending: list[Any] = []
    num_pending = 0
    started = last = time.monotonic()

    def flush() -> None:
        nonlocal num_pending, last
        if pending:
            keys = sink.take(pending)
            ended = _ended(keys)
            seen.append(ended[key])
            if num_containers:
                meter.unpacked(keys.num_rows, len(pc.unique(ended[key])))
            meter.settled(keys)
            pending.clear()
        num_pending, last = 0, time.monotonic()

    for number, bundle in enumerate(dataset.iter_internal_ref_bundles()):
        if number == 0:
            started = last = time.monotonic()
        num_rows = bundle.num_rows() or 0
        if num_rows:
            pending += list(bundle.block_refs)
            num_pending += num_rows
        if not num_containers:
            meter.arrived(groups[-1].pool.batch_rows)
        now = time.monotonic()
        # Short runs show early what they keep, and write while workers still score.
        every_s = min(config.commit_every_s, max(_FIRST_COMMIT_S, _COMMIT_SHARE * (now - started)))
        if num_pending >= config.shard_rows or now - last >= every_s:
            flush()
    flush()
    names = [group.stages[-1][0].__name__ for group in groups]
    meter.busy(pools_used(dataset, names, num_workers), time.monotonic() - started)
    done = pa.chunked_array([chunk for column in seen for chunk in column.chunks], pa.string())
    lost = todo.filter(pc.invert(pc.is_in(todo[key], value_set=done.combine_chunks())))
    if lost.num_rows:
        meter.note(f"{lost.num_rows} rows were lost with a worker that died; trying them one by one")
        for row in blocks_of(lost, 1):
            parts = [] if containers is None else containers.smaller(row)
            for result in _tried(parts or [row], groups, config.medium_timeout_s, reject, containers):
                keys = sink.take([ray.put(result)])
                meter.settled(keys)
            if containers is not None and parts:
                sink.commit(None, containers.ending(row))
            meter.arrived(1)


def _ended(keys: pa.Table) -> pa.Table:
    """Rows of what was read to its end: all but those of a container whose last member is still to come."""
    if "ends_container" not in keys.schema.names:
        return keys
    return keys.filter(pc.or_(pc.is_null(keys["member"]), pc.fill_null(keys["ends_container"], False)))


def _tried(
    rows: list[pa.Table],
    groups: list[Group],
    limit_s: float,
    reject: Callable[[pa.Table, str, str], pa.Table],
    containers: Containers | None,
) -> Iterator[pa.Table]:
    """Results of rows, each in workers of its own; a row that no worker survives is divided, then rejected."""
    for row in rows:
        result = _isolated(groups, row, limit_s)
        if isinstance(result, pa.Table):
            yield result
        elif parts := [] if containers is None else containers.smaller(row):
            yield from _tried(parts, groups, limit_s, reject, containers)
        else:
            yield reject(row, *result)


def _isolated(groups: list[Group], row: pa.Table, limit_s: float, lives: int = _LIVES) -> pa.Table | tuple[str, str]:
    """The result of one row in workers of its own, or reason and detail of their death. A stage's exception is the
    program's fault and is raised.
    """
    table = row
    for group in groups:
        actor: Any = ray.remote(Chain)
        options = {"num_cpus": group.pool.num_cpus, "num_gpus": group.pool.num_gpus, "max_concurrency": 2}
        worker = actor.options(**options).remote(group.stages)
        try:
            table = _watched(worker, worker.__call__.remote(table), limit_s)
        except GetTimeoutError:
            return "timed_out", f"no sign of life for {limit_s:g} s"
        except RayTaskError:
            raise
        except RayActorError as error:
            if lives > 1:
                return _isolated(groups, row, limit_s, lives - 1)
            return "worker_died", str(error).splitlines()[0][:300]
        finally:
            ray.kill(worker)
    return table


def _watched(worker: Any, result: Any, limit_s: float) -> pa.Table:
    """The result, waited for as long as the worker's medium shows signs of life. Raises GetTimeoutError."""
    started = time.monotonic()
    while True:
        done, _ = ray.wait([result], timeout=_LOOK_EVERY_S)
        if done:
            return ray.get(result)
        if time.monotonic() - started < limit_s + _START_S:
            continue
        # A decoder that hangs with the interpreter's lock gives no answer either.
        if ray.get(worker.idle_s.remote(), timeout=limit_s) > limit_s:
            raise GetTimeoutError
