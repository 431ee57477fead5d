"""Sources, config and catalog -> the plan of a run: per phase which rows, why, what is read, computed and written.

`--plan` prints it and a run carries it out. A phase whose plan hangs on what phases before it will find, tells what is
known; it is planned again, by the same functions, when these are through.
"""

from collections.abc import Callable, Iterable

from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.plan.captions import CaptionPlan, plan_caption
from tokenmill.pipeline.plan.files import CuratePlan, plan_curate
from tokenmill.pipeline.plan.tokens import TokenizePlan, plan_tokenize
from tokenmill.pipeline.plan.training import TrainPlan, plan_train
from tokenmill.pipeline.refresh.changes import SourceChanges
from tokenmill.pipeline.refresh.sources import Listing
from tokenmill.pipeline.refresh.steps import NOW, Outlook

PhasePlan = CuratePlan | CaptionPlan | TokenizePlan | TrainPlan


def make_plan(
    config: RunConfig,
    catalog: Catalog,
    phases: Iterable[str],
    listing: Listing | None,
    changes: SourceChanges | None = None,
) -> dict[str, PhasePlan]:
    """The plans of `phases`, in their order, each on the catalog as those before will leave it; `listing` is what the
    sources hold, for curate, and `changes` what of it is not as recorded. Nothing is written, no medium opened.

    Raises CatalogError for a version that cannot be trained on any more.
    """
    plans, outlook = dict[str, PhasePlan](), NOW
    for phase in phases:
        plans[phase] = plan_phase(phase, config, catalog, listing, outlook, changes)
        outlook = plans[phase].outlook
    return plans


def nothing(phase: str, told: list[str], config: RunConfig, changes: SourceChanges) -> PhasePlan:
    """The plan of a phase but train that has nothing to do, with what it tells."""
    if phase == "curate":
        return CuratePlan.nothing(told, changes)
    return CaptionPlan.nothing(told) if phase == "caption" else TokenizePlan.nothing(told, config)


def plan_phase(
    phase: str,
    config: RunConfig,
    catalog: Catalog,
    listing: Listing | None,
    outlook: Outlook,
    changes: SourceChanges | None = None,
) -> PhasePlan:
    """The plan of one phase. Raises CatalogError as `make_plan` does."""
    if phase == "curate":
        return plan_curate(config, catalog, listing, changes)
    plans: dict[str, Callable[[RunConfig, Catalog, Outlook], CaptionPlan | TokenizePlan | TrainPlan]]
    plans = {"caption": plan_caption, "tokenize": plan_tokenize, "train": plan_train}
    return plans[phase](config, catalog, outlook)
