"""`tokenmill doctor`: what this machine and a config's places have, and what they lack, each with its remedy.

Nothing is downloaded, no model is loaded, and of a root one small object is put and taken away again. What is said
holds no credentials: addresses lose user and password, texts of a store its keys.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import Console

from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.reports.terminal import shown, table
from tokenmill.pipeline.start.machine import examine_machine
from tokenmill.pipeline.start.places import look_at_places
from tokenmill.pipeline.start.wanted import Finding, captioners_of, models_of
from tokenmill.storage.failure_log import redacted

_STYLE = {"ok": "green", "look": "yellow", "fails": "red"}


def examine(config: RunConfig | None) -> Iterator[Finding]:
    """What there is to say of the machine, and of what a config asks for."""
    found = [examine_machine(config)]
    if config is not None:
        found += [look_at_places(config), models_of(config), captioners_of(config)]
    for each in (finding for part in found for finding in part):
        yield Finding(each.what, each.state, redacted(each.detail), redacted(each.remedy))


def doctor(config: RunConfig | None, as_json: bool, console: Console) -> bool:
    """Say it all; whether nothing fails."""
    found = list(examine(config))
    is_well = not any(each.state == "fails" for each in found)
    if as_json:
        console.print_json(json.dumps({"well": is_well, "findings": [asdict(each) for each in found]}))
        return is_well
    made = table("What is here", "what", "", "found", "what to do")
    for each in found:
        state = f"[{_STYLE[each.state]}]{each.state}[/]"
        made.add_row(shown(each.what), state, shown(each.detail, 300), shown(each.remedy, 300))
    console.print(made)
    missing = sum(each.state == "fails" for each in found)
    to_see = sum(each.state == "look" for each in found)
    well = f"All there, {to_see} to look at." if to_see else "All there."
    console.print(well if is_well else f"{missing} to mend before a run.", highlight=False)
    return is_well
