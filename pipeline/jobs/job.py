"""What is run -> the job: its name, its phases, and the config that goes with it.

The name hashes the root, the phases and all of the config that says what (never how): the same work has the same name
wherever it is submitted from. Secrets never go along; a config that holds one is refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from tokenmill import PHASES, storage
from tokenmill.pipeline.config import ConfigError, RunConfig
from tokenmill.pipeline.jobs_config import Jobs, Shape
from tokenmill.storage.failure_log import redacted
from tokenmill.storage.identity import Resources, fingerprint_of

PREFIX = "tokenmill-"
_ATTEMPT = re.compile(r"(tokenmill-[a-z-]+-[0-9a-f]{16})(?:-(\d+))?")


@dataclass(frozen=True)
class Job:
    """One submission."""

    name: str
    root: str
    phases: tuple[str, ...]
    config: str  # YAML
    jobs: Jobs
    secrets: tuple[str, ...]  # names of variables

    @property
    def shapes(self) -> dict[tuple[str, ...], Shape]:
        """The machines, by the phases that share them."""
        found: dict[tuple[str, ...], Shape] = {}
        for phase in self.phases:
            shape = self.jobs.shape(phase)
            same = next((phases for phases, known in found.items() if known == shape), ())
            found.pop(same, None)
            found[(*same, phase)] = shape
        return found

    def command(self, config: str, *sets: str) -> list[str]:
        """Words of the command that the job runs, with the config at this path."""
        phases = [] if self.phases == PHASES else [word for phase in self.phases for word in ("--phase", phase)]
        return ["run", config, *phases, *(word for item in sets for word in ("--set", item))]

    def attempt(self, number: int) -> str:
        """The name of the first, second, ... submission of this work."""
        return self.name if number == 1 else f"{self.name}-{number}"


def job_of(config: RunConfig, phases: Sequence[str], makes_absolute: bool = True) -> Job:
    """The job that runs `phases` (in the order of a run). Local paths of root and sources are made absolute, or, for
    machines that share no disk with this one, refused where they are relative.

    Raises ConfigError, also for a secret in the config.
    """
    places = {"root": config.root} | {f"sources.{n}.uri": source.uri for n, source in enumerate(config.sources)}
    where = {key: _place(key, uri, makes_absolute) for key, uri in places.items()}
    sources = [source.model_copy(update={"uri": where[f"sources.{n}.uri"]}) for n, source in enumerate(config.sources)]
    config = config.model_copy(update={"root": where["root"], "sources": sources})
    document = config.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump(document, sort_keys=False, width=120, allow_unicode=True)
    ordered = tuple(phase for phase in PHASES if phase in phases)
    identity = fingerprint_of(config.root, list(ordered), what(config))
    name = f"{PREFIX}{_short(ordered)}-{identity}"
    return Job(name, config.root, ordered, _without_secrets(text), config.jobs, tuple(config.cluster.nodes.secrets))


def what(value: Any) -> Any:
    """A config as plain data, without all that says how."""
    if isinstance(value, BaseModel):
        parts = {name: getattr(value, name) for name in type(value).model_fields}
        return {name: what(part) for name, part in parts.items() if not isinstance(part, Resources)}
    if isinstance(value, dict):
        return {str(key): what(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [what(part) for part in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def base_and_attempt(name: str) -> tuple[str, int] | None:
    """The work that a job's name stands for, and its number; null for the names of others."""
    found = _ATTEMPT.fullmatch(name)
    return (found[1], int(found[2] or 1)) if found else None


def _short(phases: tuple[str, ...]) -> str:
    if phases == PHASES:
        return "run"
    return phases[0] if len(phases) == 1 else f"{phases[0]}-{phases[-1]}"


def _place(key: str, uri: str, makes_absolute: bool) -> str:
    if storage.is_remote(uri) or "://" in uri:
        return uri
    if not makes_absolute and not uri.startswith("/"):
        raise ConfigError(
            f"{key}: {uri} is relative to a folder of this machine: give s3://bucket/prefix, or the absolute path on a "
            "volume of jobs.kuberay.volumes"
        )
    return storage.absolute(uri)


def _without_secrets(text: str) -> str:
    hidden = redacted(text)
    if hidden == text:
        return text
    pairs = zip(text.splitlines(), hidden.splitlines(), strict=False)
    line = next((clean for dirty, clean in pairs if dirty != clean), "")
    raise ConfigError(
        f"the config holds a secret, which a job would show to everybody: `{line.strip()[:200]}`: take it out, and put "
        "the name of an environment variable into cluster.nodes.secrets"
    )
