"""What a run is to do: its plans before the work, and again where a phase hangs on those before it."""

from functools import cached_property
from typing import TypeVar

from tokenmill.pipeline.catalog.forgotten import Forgotten
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import ConfigError, RunConfig
from tokenmill.pipeline.plan import settled
from tokenmill.pipeline.plan.plan import PhasePlan, make_plan, plan_phase
from tokenmill.pipeline.plan.training import TrainPlan
from tokenmill.pipeline.refresh import fingerprints
from tokenmill.pipeline.refresh.changes import SourceChanges, source_changes
from tokenmill.pipeline.refresh.sources import Listing, list_sources
from tokenmill.pipeline.refresh.steps import NOW, Step

_Plan = TypeVar("_Plan", bound=PhasePlan)


class Planning:
    """The part of a run that plans."""

    config: RunConfig
    catalog: Catalog
    foreseen: dict[str, PhasePlan]  # what was told before the work
    plans: dict[str, PhasePlan]  # what is carried out

    @property
    def steps(self) -> list[Step]:
        """What was told before the work."""
        return [step for plan in self.foreseen.values() for step in plan.steps]

    @cached_property
    def listing(self) -> Listing:
        """What the sources hold and nobody forgot, listed once for the plan and the work. Raises ConfigError."""
        listing = list_sources(self.config.sources, self.config.cluster.medium_timeout_s)
        forgotten = Forgotten.load(self.catalog.root)
        if forgotten.places:
            listing.rows = listing.rows.filtered(forgotten.without)
        return listing

    def check_listing(self) -> None:
        """Raises ConfigError when a source failed half-way: all else is done, and nothing of it was changed."""
        if failed := self.listing.failed if "curate" in self.plans else []:
            raise ConfigError("\n".join([*failed, "What was known of it stays as it is; run the same command again"]))

    def foresee(self, phases: tuple[str, ...]) -> None:
        """Plan all phases. Raises ConfigError and CatalogError."""
        listing, changes, config, catalog = None, SourceChanges(), self.config, self.catalog
        if "curate" in phases:
            listing = self.listing
            changes = source_changes(listing, catalog, fingerprints.of_curate(config))
        known = settled.nothing_to_do(config, catalog, phases, changes) or {}
        self.foreseen = known | make_plan(
            config, catalog, [name for name in phases if name not in known], listing, changes
        )
        self.plans = dict(self.foreseen)

    def settle(self, before: dict[str, int]) -> None:
        """Keep that there was nothing to do, where that is so: neither in a plan, nor in the tables since `before`."""
        plans = [plan for plan in self.foreseen.values() if not isinstance(plan, TrainPlan)]
        is_whole = "curate" in self.foreseen and not (self.listing.failed or self.listing.unseen)
        if is_whole and all(plan.is_nothing for plan in plans) and before == self.versions:
            settled.keep(self.catalog, settled.state_of(self.config, self.catalog), self.foreseen)

    @property
    def versions(self) -> dict[str, int]:
        """Of the tables, by name."""
        return {table.name: table.version for table in self.catalog}

    def plan(self, phase: str, of: type[_Plan]) -> _Plan:
        """What the phase is to do, now that those before it are through."""
        if not self.plans[phase].is_exact:
            self.plans[phase] = plan_phase(phase, self.config, self.catalog, None, NOW)
        plan = self.plans[phase]
        assert isinstance(plan, of)
        return plan
