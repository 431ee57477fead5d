"""Versions of a dataset on the terminal: the log of its runs, and how two versions differ."""

import json

from rich.console import Console

from tokenmill.pipeline.catalog.dataset import Dataset
from tokenmill.pipeline.catalog.versions import runs
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.reports.terminal import table

_SHOWN_IDS = 5


def print_log(config: RunConfig, as_json: bool, console: Console) -> None:
    """Print the runs, newest first. Raises CatalogError without a catalog."""
    dataset = Dataset(config.root)
    found = runs(dataset.catalog)[::-1]
    if as_json:
        console.print_json(json.dumps(found))
        return
    made = table(f"Versions of {dataset.root}", "version#", "run", "command", "rows added and removed", "also")
    for run in found:
        rows = ", ".join(f"{name} +{added} -{removed}" for name, (added, removed) in run["rows"].items())
        made.add_row(str(run["version"]), run["run_id"], run["command"] or "killed", rows, ", ".join(run["what"]))
    console.print(made)


def print_difference(config: RunConfig, one: int, two: int, as_json: bool, console: Console) -> None:
    """Print how version `two` differs from version `one`. Raises CatalogError for a version that is not there."""
    found = Dataset(config.root).at(two).difference(one)
    if as_json:
        console.print_json(json.dumps(found))
        return
    made = table(f"Version {one} to version {two}", "media", "count#", "such as")
    for name, ids in found.items():
        more = ", ..." if len(ids) > _SHOWN_IDS else ""
        made.add_row(name, str(len(ids)), ", ".join(media_id[:12] for media_id in ids[:_SHOWN_IDS]) + more)
    console.print(made)
