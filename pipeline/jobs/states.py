"""What all schedulers say of a job, and what is asked of all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from tokenmill.pipeline.jobs.job import Job
from tokenmill.storage.errors import UserError

State = Literal["queued", "running", "succeeded", "failed", "stopped"]
ALIVE = ("queued", "running")


class JobError(UserError):
    """A scheduler cannot do what was asked; the message says why and what to do."""


@dataclass(frozen=True)
class Known:
    """A job that a scheduler knows."""

    name: str
    state: State
    root: str = ""
    phases: str = ""
    detail: str = ""  # the scheduler's own number and word for its state


class Scheduler(Protocol):
    """Raises JobError where the scheduler does not answer or knows no job of that name."""

    def text(self, job: Job) -> str:
        """Exactly what `submit` would hand over."""
        ...

    def submit(self, job: Job, name: str) -> str:
        """Hand it over as `name`; what the scheduler calls it."""
        ...

    def known(self) -> list[Known]:
        """All jobs of tokenmill that it still knows."""
        ...

    def logs(self, name: str, follow: bool) -> Iterator[str]:
        """The job's output so far; with `follow` until it ends."""
        ...

    def stop(self, name: str) -> None:
        """Ask the job to end in order; what was committed stays."""
        ...
