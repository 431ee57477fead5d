"""That there is nothing to do, kept: a plan is a function of the sources, the config and the tables.

Where an earlier plan of the same config, by the same code, on the same versions of all tables found nothing to do, and
the sources are as recorded, there is nothing to do now. So what an unchanged refresh costs is listing the sources and
comparing them; the tables of media, captions and tokens are not read.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.plan.plan import PhasePlan, nothing
from tokenmill.pipeline.refresh import fingerprints
from tokenmill.pipeline.refresh.changes import SourceChanges
from tokenmill.storage.checksums import is_as_signed, signed
from tokenmill.storage.errors import DamagedError
from tokenmill.storage.identity import fingerprint_of

PHASES = ("curate", "caption", "tokenize")
_NAME = "settled.json"


def state_of(config: RunConfig, catalog: Catalog) -> str:
    """Of the config, what it names, and the tables. Raises CaptionError, PromptError, UserError."""
    return fingerprint_of("settled", {table.name: table.version for table in catalog}, fingerprints.of_all(config))


def keep(catalog: Catalog, state: str, plans: Mapping[str, PhasePlan]) -> None:
    """Keep what was told by `plans` of PHASES that found nothing to do, for this state."""
    told = {name: [step.why for step in plan.steps] for name, plan in plans.items() if name in PHASES}
    known = _kept(catalog)
    if known is not None and known["state"] == state:
        if told.items() <= known["told"].items():
            return
        told = known["told"] | told
    storage.write_json(storage.join(catalog.root, _NAME), signed({"state": state, "told": told}))


def nothing_to_do(
    config: RunConfig, catalog: Catalog, phases: Iterable[str], changes: SourceChanges
) -> dict[str, PhasePlan] | None:
    """The plans of those of `phases` that are of PHASES, where it is kept that there is nothing to do and the sources
    have not changed; null: nobody knows.
    """
    wanted = [phase for phase in phases if phase in PHASES]
    if changes.differ or not wanted or any(table.is_new for table in catalog):
        return None
    known = _kept(catalog)
    if known is None or not set(wanted) <= known["told"].keys() or known["state"] != state_of(config, catalog):
        return None
    return {phase: nothing(phase, known["told"][phase], config, changes) for phase in wanted}


def _kept(catalog: Catalog) -> dict[str, Any] | None:
    """What is kept; null also where it is not as it was written, for a plan finds it anew."""
    uri = storage.join(catalog.root, _NAME)
    try:
        known = storage.read_json(uri) if storage.exists(uri) else None
    except DamagedError:
        return None
    is_whole = isinstance(known, dict) and {"state", "told"} <= known.keys() and is_as_signed(known)
    return known if is_whole else None
