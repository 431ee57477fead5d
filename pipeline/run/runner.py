"""The line: plan, phases in order, record, closing table. One call for every command that does work."""

import re

from rich.console import Console

from tokenmill.pipeline.catalog.lease import held
from tokenmill.pipeline.catalog.tables import CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.refresh import refresh
from tokenmill.pipeline.refresh.sources import check_sources
from tokenmill.pipeline.reports import terminal
from tokenmill.pipeline.reports.status import closing, reasons_with_kept
from tokenmill.pipeline.run import phases as phase_functions, plan, preview
from tokenmill.pipeline.run.phases import Run
from tokenmill.stages import filled_columns
from tokenmill.stages.select.decide import NOT_SCORED
from tokenmill.stages.select.expensive import SCORERS
from tokenmill.stages.table.columns import CAPTIONS, MEDIA
from tokenmill.tokenizer.shards import TOKENS


def run_phases(
    config: RunConfig, phases: tuple[str, ...], command: str, console: Console, plan_only: bool = False
) -> Run:
    """Run `phases` in order on one cluster; print the plan before and the accounts after. `plan_only` stops after the
    plan and changes nothing.

    Raises ConfigError, PlanError or CatalogError before any work when something does not fit.
    """
    for made, schema in (
        (plan.curate_plan(config), MEDIA),
        (plan.caption_plan(config), CAPTIONS),
        (plan.tokenize_plan(config), TOKENS),
    ):
        plan.check_columns(made, schema)
    if config.version is not None and set(phases) - {"train"}:
        raise CatalogError(
            f"version {config.version} is past and stays as it is: `{command}` would change it; leave --version out"
        )
    run = Run(config, console, command)
    if "curate" in phases:
        check_sources(config.sources)
    if plan_only:
        run.catalog.read_absent_as_empty()
        _foresee(run, phases)
        return run
    with held(run.catalog, run.run_id, command):
        if config.version is None:
            run.catalog.create()
        _foresee(run, phases)
        with run.workers:
            if any(step.num_read != 0 for step in run.steps):
                if _needs_ray(run):
                    run.workers.start_ray()
                print_stages(run, phases)
            try:
                for name in phases:
                    getattr(phase_functions, name)(run)
                for table in run.catalog if config.version is None else ():
                    table.compact(config.cluster.file_mb << 20, {"run_id": run.run_id})
            finally:
                run.record()
    closing(run.reports, run.catalog, console)
    return run


def redecide(config: RunConfig, console: Console) -> None:
    """Apply the rules to stored scores, without Ray and without reading a medium; print the verdicts before and after.

    Raises CatalogError without a catalog.
    """
    run = Run(config, console, "redecide")
    if not run.catalog.exists():
        raise CatalogError(f"{run.catalog.root}: no catalog there yet; run `tokenmill curate CONFIG` first")
    before = reasons_with_kept(run.catalog)
    uses_source = config.caption.captioner == "source"
    fingerprint = refresh.curate_fingerprint(config)
    with held(run.catalog, run.run_id, "redecide"):
        refresh.redecide(run.catalog, config, run.run_id)
        refresh.reconcile(run.catalog, fingerprint, uses_source, run.run_id, config.curate.duplicates)
        run.record()
    after = reasons_with_kept(run.catalog)
    made = terminal.table("Verdicts on stored scores", "verdict", "before#", "after#")
    for name in sorted(before | after, key=lambda name: -(before | after)[name]):
        made.add_row(terminal.shown(name), str(before.get(name, 0)), str(after.get(name, 0)))
    console.print(made)
    if waiting := after.get(NOT_SCORED, 0):
        console.print(f"{waiting} wait for scores; `tokenmill run` computes them and goes on", highlight=False)


def _needs_ray(run: Run) -> bool:
    """Whether Ray is needed for more than a training, which starts it when its time has come."""
    config = run.config
    num_rows = sum(step.num_read or 0 for step in run.steps if step.phase != "train")
    pools = (config.curate.clip_resources, config.tokenize.resources)
    is_large = any(table.count() > config.cluster.join_rows for table in run.catalog)
    return num_rows > config.cluster.local_rows or is_large or any(pool.num_gpus for pool in pools)


def _foresee(run: Run, phases: tuple[str, ...]) -> None:
    """What the run will read, compute and write, and why."""
    run.steps = preview.foresee(run.config, run.catalog, phases, run.listing if "curate" in phases else None)
    terminal.print_steps(run.steps, run.catalog.root, run.console)


def print_stages(run: Run, phases: tuple[str, ...]) -> None:
    """The stages, columns and workers of each phase."""
    config = run.config
    made = terminal.table("Stages", "phase", "stages", "writes", "workers#")
    plans = {"curate": plan.curate_plan, "caption": plan.caption_plan, "tokenize": plan.tokenize_plan}
    for name in phases:
        if name not in plans:
            model = config.train.model
            made.add_row(name, str(model), "checkpoints, model", str(config.train.resources.num_workers))
            continue
        phase = plans[name](config)
        groups = plan.groups(phase, run.workers.resources())
        stages = " | ".join(" > ".join(stage.__name__ for stage, _ in group.stages) for group in groups)
        written = sorted({field.name for stage, _ in phase.stages for field in stage.writes} & set(_columns(name)))
        workers = " + ".join(f"{group.workers} x {group.pool.num_cpus:g} CPU" for group in groups)
        made.add_row(name, stages, f"{len(written)} columns", workers)
    run.console.print(made)
    if "curate" in phases:
        _print_scorers(run)


def _print_scorers(run: Run) -> None:
    """Which expensive scorers are in use, and which rules will go without a score that is off."""
    part = run.config.curate
    state = {
        "text": "on" if part.text is not None else "off (curate.text={} looks for text)",
        "clip": part.clip.model or "off (no weights; curate.clip.model names an OpenCLIP model or a folder)",
    }
    run.console.print("  " + "; ".join(f"{name}: {shown}" for name, shown in state.items()), highlight=False)
    filled = filled_columns(part.clip) | (set(SCORERS["text"]) if part.text is not None else set())
    off = {column for columns in SCORERS.values() for column in columns} - filled
    for name, keep in (part.decide.image_rules | part.decide.video_rules).items():
        if missing := sorted(set(re.findall(r"[a-z_]+", keep)) & off):
            run.console.print(f"  rule {name}: goes without {', '.join(missing)}", style="yellow", highlight=False)


def _columns(phase: str) -> list[str]:
    return {"curate": MEDIA, "caption": CAPTIONS, "tokenize": TOKENS}[phase].names
