"""One invocation of a command that does work: its config, its catalog, its plan, and what has been done so far."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa
from rich.console import Console

from tokenmill.pipeline.catalog.forgotten import Forgotten
from tokenmill.pipeline.catalog.lease import new_run_id
from tokenmill.pipeline.catalog.records import write_record
from tokenmill.pipeline.catalog.tables import Catalog, Table
from tokenmill.pipeline.config import ConfigError, RunConfig
from tokenmill.pipeline.refresh.plan import PhasePlan, make_plan, plan_phase
from tokenmill.pipeline.refresh.sources import Listing, list_sources
from tokenmill.pipeline.refresh.steps import Outlook, Step
from tokenmill.pipeline.reports.terminal import Meter, PhaseReport
from tokenmill.pipeline.run.workers import Workers

_Plan = TypeVar("_Plan", bound=PhasePlan)


@dataclass
class Run:
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
        self.workers = Workers(self.config.cluster)

    def table(self, phase: str) -> Table:
        """The table that a phase fills."""
        return {"curate": self.catalog.media, "caption": self.catalog.captions, "tokenize": self.catalog.tokens}[phase]

    @property
    def steps(self) -> list[Step]:
        """What was told before the work."""
        return [step for plan in self.foreseen.values() for step in plan.steps]

    @cached_property
    def listing(self) -> Listing:
        """What the sources hold and nobody forgot, listed once for the plan and the work. Raises ConfigError."""
        listing = list_sources(self.config.sources, self.config.cluster.medium_timeout_s)
        listing.rows = Forgotten.load(self.catalog.root).without(listing.rows)
        return listing

    def check_listing(self) -> None:
        """Raises ConfigError when a source failed half-way: all else is done, and nothing of it was changed."""
        if failed := self.listing.failed if "curate" in self.plans else []:
            raise ConfigError("\n".join([*failed, "What was known of it stays as it is; run the same command again"]))

    def foresee(self, phases: tuple[str, ...]) -> None:
        """Plan all phases. Raises ConfigError and CatalogError."""
        listing = self.listing if "curate" in phases else None
        self.foreseen = make_plan(self.config, self.catalog, phases, listing)
        self.plans = dict(self.foreseen)

    def plan(self, phase: str, of: type[_Plan]) -> _Plan:
        """What the phase is to do, now that those before it are through."""
        if not self.plans[phase].is_exact:
            self.plans[phase] = plan_phase(phase, self.config, self.catalog, None, Outlook())
        plan = self.plans[phase]
        assert isinstance(plan, of)
        return plan

    def record(self) -> None:
        """Keep what the run did under `<root>/runs`; `status` shows the newest."""
        reports = [report.as_dict() for report in self.reports]
        write_record(self.catalog, self.config, self.run_id, self.command, reports)

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Meter]:
        """A phase's live progress; its report joins the run's when the phase ends, whichever way."""
        report = PhaseReport(name)
        self.reports.append(report)
        with Meter(self.console, report, total, unit) as meter:
            yield meter

    @property
    def note(self) -> dict[str, str]:
        """For the log of a table."""
        return {"run_id": self.run_id}


def rejected(schema: pa.Schema, values: dict[str, Any]) -> pa.Table:
    """One row of a table, without what a run adds to it, of a medium that no worker survived."""
    names = [f for f in schema if f.name not in ("fingerprint", "run_id")]
    return pa.table({f.name: pa.array([values.get(f.name)], f.type) for f in names})
