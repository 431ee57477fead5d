"""A problem: what is wrong where, what hangs on it, and what `--repair` does about it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tokenmill import storage

FOLDER = "broken"  # under the root: what was set aside, by run


@dataclass(frozen=True)
class Aside:
    """Where a repair puts what is damaged: nothing is deleted."""

    root: str
    run_id: str

    def take(self, uri: str) -> None:
        """Move one object out of the way: to `<root>/broken/RUN_ID/...`, or, what stands outside of the root, to
        `NAME.broken` beside it. What is gone stays gone.
        """
        if not storage.exists(uri):
            return
        inside = uri.startswith(f"{self.root}/")
        below = uri.removeprefix(f"{self.root}/").split("/")
        storage.move(uri, storage.join(self.root, FOLDER, self.run_id, *below) if inside else f"{uri}.broken")

    @property
    def note(self) -> dict[str, Any]:
        """For the log of a table."""
        return {"run_id": self.run_id, "what": "repaired"}


Mend = Callable[[Aside], None]


def set_aside(uri: str) -> Mend:
    """What mends a file that is made anew when it is missed."""
    return lambda aside: aside.take(uri)


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it was written, or does not fit to the rest."""

    kind: str  # document, log, data file, reference, fetched, export, training
    uri: str
    what: str
    hangs_on_it: str
    is_harmless: bool = False  # left by a run that was stopped: the next one sets it right
    mend: Mend | None = field(default=None, compare=False, repr=False)  # null: not to be mended from what is left

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {name: getattr(self, name) for name in ("kind", "uri", "what", "hangs_on_it", "is_harmless")}
