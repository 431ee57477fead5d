"""What a run tells before it works: the plan, and the stages that carry it out, with their workers."""

import re

from tokenmill.pipeline.refresh.steps import counted
from tokenmill.pipeline.reports import terminal
from tokenmill.pipeline.run import pools
from tokenmill.pipeline.run.run import Run
from tokenmill.stages import filled_columns
from tokenmill.stages.select.expensive import SCORERS


def print_plan(run: Run) -> None:
    """What the run will read, compute and write, and why."""
    made = terminal.table(f"Plan for {run.catalog.root}", "phase", "why", "reads#", "computes", "writes")
    for step in run.steps:
        unit = "file" if step.phase == "curate" else "document" if step.phase == "train" else "media"
        reads = "?" if step.num_read is None else counted(step.num_read, unit) if step.num_read else "-"
        made.add_row(step.phase, terminal.shown(step.why, 400), reads, step.computes or "-", step.writes or "-")
    run.console.print(made)


def print_stages(run: Run) -> None:
    """The stages, columns and workers of each phase."""
    config = run.config
    made = terminal.table("Stages", "phase", "stages", "writes", "workers#")
    for name in run.plans:
        if name not in pools.STAGES:
            made.add_row(name, str(config.train.model), "checkpoints, model", str(config.train.resources.num_workers))
            continue
        for phase in pools.all_stages(name, config):
            groups = pools.groups(phase, run.workers.machines())
            stages = " | ".join(" > ".join(stage.__name__ for stage, _ in group.stages) for group in groups)
            columns = {field.name for stage, _ in phase.stages for field in stage.writes}
            num_written = len(columns & set(run.table(name).schema.names))
            made.add_row(phase.name, stages, f"{num_written} columns", " + ".join(group.told for group in groups))
    run.console.print(made)
    if "curate" in run.plans:
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
