"""Submitting, so that the same work is never done twice at once: a job of the same name that lives is attached to, one
that succeeded is told, one that failed or was stopped has a successor with a number behind its name.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenmill import PHASES, storage
from tokenmill.pipeline.config import ConfigError, RunConfig
from tokenmill.pipeline.jobs.job import Job, base_and_attempt, job_of
from tokenmill.pipeline.jobs.kubernetes import KubeRayJobs
from tokenmill.pipeline.jobs.ray import RayJobs
from tokenmill.pipeline.jobs.slurm import SlurmJobs
from tokenmill.pipeline.jobs.states import ALIVE, JobError, Known, Scheduler


@dataclass(frozen=True)
class Submitted:
    """What became of a submission."""

    name: str
    said: str


def scheduler_of(config: RunConfig, on: str | None) -> Scheduler:
    """The one that was asked for. Raises ConfigError where neither `on` nor the config names one."""
    match on or config.jobs.on:
        case "ray":
            return RayJobs(config.jobs.ray)
        case "kuberay":
            return KubeRayJobs(config.jobs.kuberay)
        case "slurm":
            return SlurmJobs(config.jobs.slurm, config.root)
        case None:
            raise ConfigError("where to? Give --on ray, --on kuberay or --on slurm, or set jobs.on")
    raise ConfigError(f"--on {on}: no such scheduler; ray, kuberay or slurm")


def jobs_of(config: RunConfig, phases: Sequence[str], on: str | None) -> list[Job]:
    """What to submit for these phases, in order: one job, but in Slurm one for each row of phases with one shape, for
    an allocation does not change. Raises ConfigError.
    """
    if unknown := sorted(set(phases) - set(PHASES)):
        raise ConfigError(f"--phase {unknown[0]}: no such phase; {', '.join(PHASES)}")
    on = on or config.jobs.on
    ordered = [phase for phase in PHASES if phase in phases]
    rows: list[list[str]] = []
    for phase in ordered:
        if rows and (on != "slurm" or config.jobs.shape(rows[-1][0]) == config.jobs.shape(phase)):
            rows[-1].append(phase)
        else:
            rows.append([phase])
    return [job_of(config, row, makes_absolute=on != "kuberay") for row in rows]


def dry_run(config: RunConfig, phases: Sequence[str], on: str | None) -> str:
    """Exactly what `submit` would hand over for work that was never submitted."""
    scheduler = scheduler_of(config, on)
    texts = [scheduler.text(job) for job in jobs_of(config, phases, on)]
    return "\n# then, --dependency=afterok of the job above:\n".join(texts)


def submit(config: RunConfig, phases: Sequence[str], on: str | None, again: bool) -> Iterator[Submitted]:
    """Attach, tell or submit, job by job. `again` submits what has succeeded, for sources that have changed."""
    scheduler = scheduler_of(config, on)
    before: Known | None = None
    for job in jobs_of(config, phases, on):
        tried = _attempts(scheduler.known(), job.name)
        newest = tried[-1] if tried else None
        if isinstance(scheduler, KubeRayJobs) and job.jobs.kuberay.schedule is not None:
            yield _scheduled(scheduler, job, newest)
            continue
        if newest and newest.state in ALIVE:
            yield Submitted(newest.name, f"is {newest.state} already ({newest.detail}): nothing was submitted")
            before = newest
            continue
        if newest and newest.state == "succeeded" and not again:
            yield Submitted(newest.name, "has succeeded: nothing was submitted; --again runs it again, as a refresh")
            before = None
            continue
        number = 1 + (base_and_attempt(newest.name) or ("", 0))[1] if newest else 1
        name = job.attempt(number)
        why = f", for {newest.name} {'has ' if newest.state != 'stopped' else 'was '}{newest.state}" if newest else ""
        if isinstance(scheduler, SlurmJobs):
            said = scheduler.submit(job, name, before)
            before = next((each for each in scheduler.known() if each.name == name), None)
        else:
            said = scheduler.submit(job, name)
        yield Submitted(name, f"submitted as {said}{why}")


def _scheduled(scheduler: KubeRayJobs, job: Job, newest: Known | None) -> Submitted:
    """A job that begins again and again: it stands until it is stopped, one for each root. Raises JobError."""
    for each in scheduler.known():
        is_alike = (each.root, each.phases) == (job.root, " ".join(job.phases)) and each.detail.startswith("RayCronJob")
        if is_alike and (newest is None or each.name != newest.name):
            raise JobError(
                f"{each.name} refreshes {job.root} already, by another config; `tokenmill jobs stop --job {each.name}` "
                "ends it"
            )
    if newest is not None and newest.detail.startswith("RayCronJob"):
        said = scheduler.renew(job, newest.name)
        return Submitted(newest.name, f"stands already: {said} has the schedule, machines and image of this config now")
    return Submitted(job.name, f"submitted as {scheduler.submit(job, job.name)}")


def find(config: RunConfig, scheduler: Scheduler, name: str | None) -> Known:
    """The job of this name; without one, of those on the config's root the newest that lives, else the newest. Raises
    JobError.
    """
    root = storage.absolute(config.root)
    found = [each for each in scheduler.known() if (each.root == root if name is None else each.name == name)]
    if not found:
        what = name or f"root {root}"
        raise JobError(f"no job of {what} is known there; `tokenmill jobs list` shows those that are, submit makes one")
    return next((each for each in reversed(found) if each.state == "running"), found[-1])


def _attempts(known: list[Known], base: str) -> list[Known]:
    of_work = [(split[1], each) for each in known if (split := base_and_attempt(each.name)) and split[0] == base]
    return [each for _, each in sorted(of_work, key=lambda pair: pair[0])]
