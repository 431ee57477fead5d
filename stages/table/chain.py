"""Neighbouring stages in one worker: tables are handed over in memory, so a decoded picture never crosses processes."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import pyarrow as pa

from tokenmill.stages.table import limits
from tokenmill.stages.table.at_hand import Notes
from tokenmill.stages.table.limits import Limits

NO_LIMITS = Limits()
_ROWS_AT_ONCE = 32


class Stage(Protocol):
    """What a class must be to run as a stage: made from its Config in the worker, then called table by table.

    It returns the input's columns less `drops`, with those of `writes` replaced or added.
    """

    reads: pa.Schema
    writes: pa.Schema
    drops: tuple[str, ...]
    rows: str  # same, fewer or more

    def __call__(self, table: pa.Table) -> pa.Table:
        """One batch."""
        ...


StageSpec = tuple[type[Any], tuple[Any, ...]]  # a Stage, and what it is made from: its Config first


class Chain:
    """What a worker runs: stages in order, each called with the table that the one before returned.

    The models open here, in the worker. `limited`, `notes`: see stages/table/limits.py. A table is worked on
    `_ROWS_AT_ONCE` rows at a time, because Ray wants large tables (10 ms each) and memory wants few decoded media; a
    first stage with a `stream` cuts it itself, because one row of its may be a tar.
    """

    def __init__(self, stages: Iterable[StageSpec], limited: Limits = NO_LIMITS, notes: Notes | None = None):
        limits.set_limits(limited, notes)
        self._stages: list[Stage] = [stage(*arguments) for stage, arguments in stages]

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.concat_tables(self.stream(table))

    def stream(self, table: pa.Table) -> Iterator[pa.Table]:
        """The same, a part at a time; at least one."""
        opened: Callable[[pa.Table], Iterator[pa.Table]] | None = getattr(self._stages[0], "stream", None)
        parts = _slices(table) if opened is None else opened(table)
        while True:
            limits.at_work(0, table)  # also where the last part made the stages after it forget
            part = next(parts, None)
            if part is None:
                return
            for number, stage in enumerate(self._stages):
                if number or opened is None:
                    limits.at_work(number, part)
                    with limits.call(part.num_rows):
                        part = stage(part)
            yield part


def _slices(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, max(1, table.num_rows), _ROWS_AT_ONCE):
        yield table.slice(start, _ROWS_AT_ONCE)
