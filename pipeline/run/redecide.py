"""`tokenmill redecide`: the rules on stored scores, and the tables that follow; no medium is read."""

from rich.console import Console

from tokenmill.pipeline.catalog.lease import held
from tokenmill.pipeline.catalog.tables import CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.plan.files import plan_curate
from tokenmill.pipeline.reports import status
from tokenmill.pipeline.run.curate import rejudge, settle
from tokenmill.pipeline.run.run import Run


def redecide(config: RunConfig, console: Console) -> None:
    """Apply the rules to stored scores; print the verdicts before and after.

    Raises CatalogError without a catalog.
    """
    run = Run(config, console, "redecide")
    if not run.catalog.exists():
        raise CatalogError(f"{run.catalog.root}: no catalog there yet; run `tokenmill curate CONFIG` first")
    before = status.reasons_with_kept(run.catalog)
    with held(run.catalog, run.run_id, "redecide"):
        plan = plan_curate(config, run.catalog, None)
        rejudge(run, plan.judged)
        done = {} if plan.is_nothing else settle(run, plan.duplicates)
        run.record()
    status.print_verdicts(before, status.reasons_with_kept(run.catalog), console)
    if lost := ", ".join(f"{done[name]} rows of {name}" for name in ("captions", "tokens") if done.get(name)):
        said = f"{lost} went with what is rejected now; a run makes them again for what comes back"
        console.print(f"{said}. To look without consequences: tokenmill rules, tokenmill explore", highlight=False)
