"""Commands of jobs: submit, and jobs list, status, logs, stop."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tokenmill import PHASES
from tokenmill.pipeline.commands import completion
from tokenmill.pipeline.commands.options import AsJson, ConfigPath, Sets, console, load

if TYPE_CHECKING:
    from tokenmill.pipeline.jobs.states import Known

On = Annotated[str | None, typer.Option("--on", help="ray, kuberay or slurm; default: jobs.on of the config.")]
Phases = Annotated[
    list[str] | None,
    typer.Option(
        "--phase",
        help="curate, caption, tokenize or train; repeatable. Default: all four, as `run`.",
        autocompletion=completion.phases,
    ),
]
Name = Annotated[str | None, typer.Option("--job", help="Its name. Default: the newest of the config's root.")]


def submit(
    config: ConfigPath,
    on: On = None,
    phases: Phases = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print exactly what would be submitted, and do nothing.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Also what has succeeded: a refresh, for sources that have changed.")
    ] = False,
    sets: Sets = None,
) -> None:
    """Hand phases to Ray, Kubernetes or Slurm as a job, or attach to the one that does this work."""
    from tokenmill.pipeline.jobs import submit as jobs

    loaded = load(config, sets)
    if dry_run:
        sys.stdout.write(jobs.dry_run(loaded, phases or PHASES, on))
        return
    for job in jobs.submit(loaded, phases or PHASES, on, again):
        console.print(f"{job.name} {job.said}", highlight=False, soft_wrap=True)


def jobs_list(config: ConfigPath, on: On = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """All jobs of tokenmill that the scheduler knows."""
    from tokenmill.pipeline.jobs import submit as jobs

    loaded = load(config, sets)
    _print(jobs.scheduler_of(loaded, on).known(), as_json)


def jobs_status(
    config: ConfigPath, on: On = None, name: Name = None, sets: Sets = None, as_json: AsJson = False
) -> None:
    """The state of one job; exits with 1 when it has failed."""
    from tokenmill.pipeline.jobs import submit as jobs

    loaded = load(config, sets)
    job = jobs.find(loaded, jobs.scheduler_of(loaded, on), name)
    _print([job], as_json)
    if job.state == "failed":
        raise typer.Exit(1)


def jobs_logs(
    config: ConfigPath,
    on: On = None,
    name: Name = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
    sets: Sets = None,
) -> None:
    """What a job has said."""
    from tokenmill.pipeline.jobs import submit as jobs
    from tokenmill.storage.failure_log import redacted

    loaded = load(config, sets)
    scheduler = jobs.scheduler_of(loaded, on)
    for text in scheduler.logs(jobs.find(loaded, scheduler, name).name, follow):
        sys.stdout.write(redacted(text))
        sys.stdout.flush()


def jobs_stop(config: ConfigPath, on: On = None, name: Name = None, sets: Sets = None) -> None:
    """End a job in order: what is finished is committed, and the next submission goes on from there."""
    from tokenmill.pipeline.jobs import submit as jobs
    from tokenmill.pipeline.jobs.states import ALIVE

    loaded = load(config, sets)
    scheduler = jobs.scheduler_of(loaded, on)
    job = jobs.find(loaded, scheduler, name)
    if job.state in ALIVE:
        scheduler.stop(job.name)
    said = "asked to end; `tokenmill jobs status` tells when it has" if job.state in ALIVE else f"has {job.state}"
    console.print(f"{job.name} {said}", highlight=False, soft_wrap=True)


def _print(jobs: "list[Known]", as_json: bool) -> None:
    if as_json:
        import json
        from dataclasses import asdict

        print(json.dumps([asdict(job) for job in jobs], indent=1))
        return
    from tokenmill.pipeline.reports.terminal import table
    from tokenmill.storage.failure_log import redacted

    made = table("Jobs", "job", "state", "phases", "root", "scheduler's word")
    made.columns[0].no_wrap = True  # a name is copied into --job
    for job in jobs:
        made.add_row(*(redacted(part) for part in (job.name, job.state, job.phases, job.root, job.detail)))
    console.print(made if jobs else "No jobs", highlight=False)
