"""Plan, phases in order, record, closing table: one call for every command that does work."""

from rich.console import Console

from tokenmill.pipeline.catalog.forgotten import Forgotten, drop_forgotten
from tokenmill.pipeline.catalog.lease import held
from tokenmill.pipeline.catalog.tables import CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.refresh.sources import check_sources
from tokenmill.pipeline.reports.status import closing
from tokenmill.pipeline.run import captioning, curate, pools, tell, tokenizing
from tokenmill.pipeline.run.run import Run


def _train(run: Run) -> None:
    from tokenmill.pipeline.run.train import train  # brings torch, which takes longer than an unchanged refresh

    train(run)


_PHASES = {
    "curate": curate.curate,
    "caption": captioning.caption,
    "tokenize": tokenizing.tokenize,
    "train": _train,
}


def run_phases(
    config: RunConfig, phases: tuple[str, ...], command: str, console: Console, plan_only: bool = False
) -> Run:
    """Run `phases` in order on one cluster; print the plan before and the accounts after. `plan_only` stops after the
    plan and changes nothing.

    Raises ConfigError, PlanError or CatalogError before any work when something does not fit.
    """
    run = Run(config, console, command)
    for name, stages_of in pools.STAGES.items():
        pools.check_columns(stages_of(config), run.table(name).schema)
    if config.version is not None and set(phases) - {"train"}:
        raise CatalogError(
            f"version {config.version} is past and stays as it is: `{command}` would change it; leave --version out"
        )
    if "curate" in phases:
        check_sources(config.sources, config.cluster.medium_timeout_s)
    if plan_only:
        run.catalog.read_absent_as_empty()
        run.foresee(phases)
        tell.print_plan(run)
        run.check_listing()
        return run
    wait_s = config.cluster.root_wait_s
    with held(run.catalog, run.run_id, command, run.progress, wait_s, lambda who: _tell_wait(run, who)):
        if config.version is None:
            run.catalog.create()
            drop_forgotten(run.catalog, Forgotten.load(run.catalog.root), run.run_id)
        versions = run.versions
        run.foresee(phases)
        captioning.check_captioners(run)
        tell.print_plan(run)
        with run.workers:
            if any(step.num_read != 0 for step in run.steps):
                if _needs_ray(run):
                    run.workers.start_ray()
                tell.print_stages(run)
            try:
                for name in phases:
                    _PHASES[name](run)
                for table in run.catalog if config.version is None else ():
                    table.compact(config.cluster.file_mb << 20, run.note)
                run.settle(versions)
            finally:
                run.record()
    closing(run.reports, run.catalog, console)
    run.check_listing()
    return run


def _tell_wait(run: Run, who: str) -> None:
    run.console.print(f"  waits for {who}, at work on {run.catalog.root}", style="yellow", highlight=False)


def _needs_ray(run: Run) -> bool:
    """Whether Ray is needed for more than a training, which starts it when its time has come."""
    config = run.config
    num_rows = sum(step.num_read or 0 for step in run.steps if step.phase != "train")
    of_captions = [config.caption.pool(name) for name in config.caption.order]
    resources = (config.curate.clip_resources, *of_captions, config.tokenize.resources)
    is_large = any(table.count() > config.cluster.join_rows for table in run.catalog)
    return num_rows > config.cluster.local_rows or is_large or any(pool.num_gpus for pool in resources)
