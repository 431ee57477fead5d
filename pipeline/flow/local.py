"""A phase's flow in worker processes of this machine, for work that is done before Ray has started.

The same stages in the same number of processes, the same shards and commits: tables are equal to those of a flow on Ray
(tests/pipeline/flow/test_flow.py). Results stand in the driver's memory until they are written, and nothing streams
between machines, so this is for `cluster.local_rows` rows at most (pipeline/run/workers.py).
"""

import itertools
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa

from tokenmill.pipeline.flow.flow import Collector, Flow
from tokenmill.pipeline.flow.writer import ShardWriter
from tokenmill.stages.table.at_hand import LIVES, hung, is_held
from tokenmill.stages.table.worker_process import Job, main, packed, unpacked
from tokenmill.storage import scratch

_chains = itertools.count()


class _WorkerDied(Exception):  # noqa: N818
    """The process ended in the middle of its work."""

    def __init__(self, returncode: int):
        super().__init__(f"the worker process ended with code {returncode}")


class _Process:
    """One worker process (stages/table/worker_process.py), which notes in `folder` what it has at hand."""

    def __init__(self, threads: int, folder: str):
        self.threads, self.folder = threads, folder
        self._pipe: Connection
        self._pipe, theirs = Pipe()
        number = theirs.fileno()
        code = f"import sys; sys.path[:] = {sys.path!r}; from {main.__module__} import main; main({number}, {folder!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[number],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))},  # as Ray does
        )
        theirs.close()

    def call(self, job: Job) -> list[pa.Table]:
        """Raises what a stage raised, and _WorkerDied."""
        try:
            self._pipe.send(job)
            answer: Any = self._pipe.recv()
        except (EOFError, OSError):
            self._pipe.close()
            raise _WorkerDied(self._process.wait()) from None
        if isinstance(answer, Exception):
            raise answer
        return [unpacked(part) for part in answer]

    def successor(self) -> "_Process":
        """One that knows what this one, which died, had at hand."""
        return _Process(self.threads, self.folder)

    def end(self) -> None:
        """End it now, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()


class LocalWorkers:
    """Processes that stay from flow to flow, so that a command pays for their imports once."""

    def __init__(self) -> None:
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._lock = threading.Lock()
        self._folder: str | None = None
        self._numbers = itertools.count()

    def run(self, flow: Flow) -> None:
        """Send what is to do through worker processes into the sink. Raises what a stage raised."""
        (group,) = flow.groups
        blocks = flow.blocks()
        num_workers = min(group.workers, len(blocks))
        number, limited = next(_chains), flow.limits
        sink = flow.sink
        collector = Collector(flow, ShardWriter(sink.root, sink.table, sink.constants, sink.keys))
        spent_s: list[float] = []

        def work(block: pa.Table) -> list[pa.Table]:
            """None of it where the worker died: the rows count as lost."""
            started = time.monotonic()
            try:
                return self._call((number, group.stages, limited, packed(block)), _threads(flow))
            except _WorkerDied:
                return []
            finally:
                spent_s.append(time.monotonic() - started)

        started = time.monotonic()
        pool = ThreadPoolExecutor(num_workers, thread_name_prefix="worker")
        try:
            with collector.collecting():
                for made in pool.map(work, blocks):
                    collector.add(made, sum(part.num_rows for part in made))
        except BaseException:
            self.end()  # the threads wait for answers that nobody needs any more
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        span_s = time.monotonic() - started
        busy = round(min(1.0, sum(spent_s) / (num_workers * max(span_s, 1e-6))), 3)
        name = group.stages[-1][0].__name__
        flow.meter.busy([{"pool": name, "workers": num_workers, "busy": busy}], span_s)
        collector.retry_lost(lambda row: self._isolated(flow, row), lambda result: result)

    def end(self) -> None:
        """End all processes."""
        with self._lock:
            ending, self._all, self._idle = self._all, set(), []
        for process in ending:
            process.end()
        if self._folder is not None:
            scratch.let_go(self._folder)
            self._folder = None

    def _call(self, job: Job, threads: int) -> list[pa.Table]:
        """In a process, and in the next one when it dies over a medium. Raises _WorkerDied when none was at hand."""
        with self._lock:
            process = self._idle.pop() if self._idle else None
        process = process or self._started(_Process(threads, self._new_folder()))
        for num_deaths in itertools.count(1):
            try:
                made = process.call(job)
            except _WorkerDied:
                with self._lock:
                    is_ending = process not in self._all
                    self._all.discard(process)
                if is_ending or num_deaths >= LIVES and not is_held(process.folder):
                    raise
                process = self._started(process.successor())
            except Exception:
                self._give_back(process)
                raise
            else:
                self._give_back(process)
                return made
        raise AssertionError

    def _isolated(self, flow: Flow, row: pa.Table) -> pa.Table | tuple[str, str]:
        """The result of one row in processes of its own, or reason and detail of their death."""
        process = _Process(_threads(flow), self._new_folder())
        for lives in reversed(range(LIVES)):
            self._started(process)
            try:
                return pa.concat_tables(process.call((0, flow.groups[0].stages, flow.limits, packed(row))))
            except _WorkerDied as death:
                if hung(process.folder) and not is_held(process.folder):
                    return "timed_out", f"no sign of life for {flow.limits.timeout_s:g} s"
                if not lives:
                    return "worker_died", str(death)
            finally:
                with self._lock:
                    self._all.discard(process)
                process.end()
            process = process.successor()
        raise AssertionError

    def _new_folder(self) -> str:
        with self._lock:
            self._folder = self._folder or scratch.claim(f"{os.getpid()}-{uuid.uuid4().hex[:8]}")
            return os.path.join(self._folder, str(next(self._numbers)))

    def _started(self, process: _Process) -> _Process:
        with self._lock:
            self._all.add(process)
        return process

    def _give_back(self, process: _Process) -> None:
        with self._lock:
            if process in self._all:
                self._idle.append(process)


_open: LocalWorkers | None = None


@contextmanager
def local_workers() -> Iterator[LocalWorkers]:
    """Worker processes for the length of a command; those that are open already, where there are."""
    global _open
    if _open is not None:
        yield _open
        return
    _open = LocalWorkers()
    try:
        yield _open
    finally:
        ending, _open = _open, None
        ending.end()


def num_cpus(of_config: int | None) -> float:
    """That workers of this machine may take; null: all."""
    return float(of_config or os.cpu_count() or 1)


def _threads(flow: Flow) -> int:
    return max(1, int(flow.groups[0].pool.num_cpus))
