"""Neighbouring stages in one worker: tables are handed over in memory, so a decoded picture never crosses processes."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa


class Chain:
    """What a worker runs: stages in order, each called with the table that the one before returned.

    `stages` are (class, config) pairs; the models open here, in the worker.
    """

    def __init__(self, stages: Iterable[tuple[type, Any]]):
        self._stages = [stage(config) for stage, config in stages]

    def __call__(self, table: pa.Table) -> pa.Table:
        for stage in self._stages:
            table = stage(table)
        return table
