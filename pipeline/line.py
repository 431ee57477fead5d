"""The line: plan, phases in order, record, closing table. One call for every command that does work."""

from rich.console import Console

from pipeline import phases as phase_functions
from pipeline import plan, report
from pipeline.config import RunConfig
from pipeline.phases import Run
from pipeline.run import cluster
from pipeline.status import closing
from stages.columns import CAPTIONS, MEDIA
from tokenizer.shards import TOKENS


def run_phases(config: RunConfig, phases: tuple[str, ...], command: str, console: Console) -> Run:
    """Run `phases` in order on one cluster; print the plan before and the accounts after.

    Raises ConfigError, PlanError or CatalogError before any work when something does not fit.
    """
    for made, schema in (
        (plan.curate_plan(config), MEDIA),
        (plan.caption_plan(config), CAPTIONS),
        (plan.tokenize_plan(config), TOKENS),
    ):
        plan.check_columns(made, schema)
    run = Run(config, console, command)
    run.catalog.create()
    with cluster(config.cluster):
        print_plan(run, phases)
        try:
            for name in phases:
                getattr(phase_functions, name)(run)
        finally:
            run.record()
    closing(run.reports, run.catalog, console)
    return run


def print_plan(run: Run, phases: tuple[str, ...]) -> None:
    """The stages, columns and workers of each phase, and what the catalog holds already."""
    config = run.config
    made = report.table(f"Plan for {run.catalog.root}", "phase", "stages", "writes", "workers#", "done#")
    plans = {"curate": plan.curate_plan, "caption": plan.caption_plan, "tokenize": plan.tokenize_plan}
    done = {
        "curate": run.catalog.media.count(),
        "caption": run.catalog.captions.count(),
        "tokenize": run.catalog.tokens.count(),
    }
    for name in phases:
        if name not in plans:
            model = config.train.train.model
            made.add_row(name, str(model), "checkpoints, model", str(config.train.resources.num_workers), "")
            continue
        phase = plans[name](config)
        groups = plan.groups(phase)
        stages = " | ".join(" > ".join(stage.__name__ for stage, _ in group.stages) for group in groups)
        written = sorted({field.name for stage, _ in phase.stages for field in stage.writes} & set(_columns(name)))
        workers = " + ".join(f"{group.workers} x {group.pool.num_cpus:g} CPU" for group in groups)
        made.add_row(name, stages, f"{len(written)} columns", workers, f"{done[name]} rows")
    run.console.print(made)


def _columns(phase: str) -> list[str]:
    return {"curate": MEDIA, "caption": CAPTIONS, "tokenize": TOKENS}[phase].names
