"""One invocation of a command that does work: its config, its catalog, its plan, and what has been done so far."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from rich.console import Console

from tokenmill.pipeline.catalog.lease import new_run_id
from tokenmill.pipeline.catalog.records import write_record
from tokenmill.pipeline.catalog.tables import Catalog, Table
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.plan.plan import PhasePlan
from tokenmill.pipeline.reports.events import EventConsole
from tokenmill.pipeline.reports.terminal import Meter, PhaseReport
from tokenmill.pipeline.run.planning import Planning
from tokenmill.pipeline.run.workers import Workers


@dataclass
class Run(Planning):
    """Filled on the way."""

    config: RunConfig
    console: Console
    command: str
    foreseen: dict[str, PhasePlan] = field(default_factory=dict)  # what was told before the work
    plans: dict[str, PhasePlan] = field(default_factory=dict)  # what is carried out
    reports: list[PhaseReport] = field(default_factory=list)
    run_id: str = field(default_factory=new_run_id)

    def __post_init__(self) -> None:
        self.catalog = Catalog(self.config.root, self.config.version)
        self.workers = Workers(self.config.cluster, self.run_id)
        self._meter: Meter | None = None
        if isinstance(self.console, EventConsole):
            self.console.run = self.run_id

    def table(self, phase: str) -> Table:
        """The table that a phase fills."""
        return {"curate": self.catalog.media, "caption": self.catalog.captions, "tokenize": self.catalog.tokens}[phase]

    def record(self) -> None:
        """Keep what the run did under `<root>/runs`; `status` shows the newest."""
        reports = [report.as_dict() for report in self.reports]
        write_record(self.catalog, self.config, self.run_id, self.command, reports)

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Meter]:
        """A phase's live progress; its report joins the run's when the phase ends, whichever way."""
        if isinstance(self.console, EventConsole):
            self.console.phase = name
        report = PhaseReport(name)
        self.reports.append(report)
        with (
            Meter(self.console, report, total, unit, [self.workers.observe]) as meter,
            self.workers.watching(meter),
        ):
            self._meter = meter
            yield meter

    def progress(self) -> dict[str, Any] | None:
        """Of the phase at work; null before the first."""
        return None if self._meter is None else self._meter.progress().as_dict()

    @property
    def note(self) -> dict[str, str]:
        """For the log of a table."""
        return {"run_id": self.run_id}


def rejected(schema: pa.Schema, values: dict[str, Any]) -> pa.Table:
    """One row of a table, without what a run adds to it, of a medium that no worker survived."""
    names = [f for f in schema if f.name not in ("fingerprint", "run_id")]
    return pa.table({f.name: pa.array([values.get(f.name)], f.type) for f in names})
