"""Neighbouring stages in one worker: tables are handed over in memory, so a decoded picture never crosses processes."""

from collections.abc import Iterable
from typing import Any, Protocol

import pyarrow as pa


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


StageSpec = tuple[type[Any], Any]  # a Stage and its Config


class Chain:
    """What a worker runs: stages in order, each called with the table that the one before returned.

    `stages` are (class, config) pairs; the models open here, in the worker.
    """

    def __init__(self, stages: Iterable[StageSpec]):
        self._stages: list[Stage] = [stage(config) for stage, config in stages]

    def __call__(self, table: pa.Table) -> pa.Table:
        for stage in self._stages:
            table = stage(table)
        return table
