"""The phases as commands: run, curate, caption, tokenize, train, and redecide."""

from typing import TYPE_CHECKING, Annotated

import typer

from tokenmill import PHASES
from tokenmill.pipeline.commands import completion
from tokenmill.pipeline.commands.options import AsEvents, ConfigPath, Sets, Version, console, load
from tokenmill.storage.errors import UserError

if TYPE_CHECKING:
    from tokenmill.pipeline.config import RunConfig

PlanOnly = Annotated[
    bool, typer.Option("--plan", "--dry-run", help="Say what would be read, computed and written, and why; do nothing.")
]


def _run(config: "RunConfig", phases: tuple[str, ...], command: str, plan_only: bool) -> None:
    from tokenmill.pipeline.run.runner import run_phases

    done = run_phases(config, phases, command, console, plan_only)
    if config.report and config.version is None and any(report.num_read or report.num_seen for report in done.reports):
        from tokenmill.pipeline.commands.look import leave_report

        leave_report(config)


def run(
    config: ConfigPath,
    sets: Sets = None,
    phases: Annotated[
        list[str] | None,
        typer.Option(
            "--phase", help="Only this one, or these; repeatable. Default: all four.", autocompletion=completion.phases
        ),
    ] = None,
    plan: PlanOnly = False,
    as_events: AsEvents = False,  # read where the console is made, before all else
) -> None:
    """All phases: curate, caption, tokenize, train. Run it again to refresh: only what is new or changed is done."""
    if unknown := sorted({*(phases or ())} - {*PHASES}):
        raise UserError(f"--phase {unknown[0]}: no such phase; {', '.join(PHASES)}")
    chosen = tuple(phase for phase in PHASES if phase in (phases or PHASES))
    _run(load(config, sets), chosen, "run", plan)


def curate(
    config: ConfigPath,
    sets: Sets = None,
    all_scores: Annotated[
        bool, typer.Option("--all-scores", help="Compute expensive scores also where no verdict hangs on them.")
    ] = False,
    plan: PlanOnly = False,
    as_events: AsEvents = False,  # read where the console is made, before all else
) -> None:
    """Probe, score, cut and decide: files become media, each kept or rejected with a reason."""
    _run(
        load(config, [*(sets or []), *(["curate.all_scores=true"] if all_scores else [])]), ("curate",), "curate", plan
    )


def redecide(config: ConfigPath, sets: Sets = None, as_events: AsEvents = False) -> None:
    """Apply the config's rules to stored scores. No file is opened; a run goes on with what is newly kept."""
    from tokenmill.pipeline.run.redecide import redecide as redecide_stored

    redecide_stored(load(config, sets), console)


def caption(config: ConfigPath, sets: Sets = None, plan: PlanOnly = False, as_events: AsEvents = False) -> None:
    """Give kept media a caption."""
    _run(load(config, sets), ("caption",), "caption", plan)


def tokenize(config: ConfigPath, sets: Sets = None, plan: PlanOnly = False, as_events: AsEvents = False) -> None:
    """Turn kept media into rows of discrete codes."""
    _run(load(config, sets), ("tokenize",), "tokenize", plan)


def train(
    config: ConfigPath,
    sets: Sets = None,
    version: Version = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            "--stage",
            help="Of train.stages: only this one, or these; repeatable. Default: all.",
            autocompletion=completion.stages,
        ),
    ] = None,
    plan: PlanOnly = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Start nothing: follow the training that is at work, wherever it is.")
    ] = False,
    as_events: AsEvents = False,
) -> None:
    """Train one transformer on the token shards of one pinned version, stage by stage where the config has stages."""
    if watch:
        from tokenmill.pipeline.reports.watch import watch as watch_run

        watch_run(load(config, sets).root, console)
        return
    only = [f"train.only=[{', '.join(stage)}]"] if stage else []
    _run(load(config, [*(sets or []), *only], version), ("train",), "train", plan)
