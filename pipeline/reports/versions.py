"""Versions of a dataset: what each run changed, and how two versions differ.

A dataset version is a version of the `tokens` table: training pins one, and every command that reads takes one. The
other tables at a version are as they were until the next one was committed.
"""

import json
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from tokenmill.pipeline.catalog.records import read_record
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.reports.terminal import table

_SHOWN_IDS = 5


def runs(catalog: Catalog) -> list[dict[str, Any]]:
    """Runs that changed a table, oldest first: `run_id`, `time_ms`, the tokens `version` after it, `command`, `code`
    (null for a run that was killed), `rows` added and removed by table, and `what` besides its phases it did.
    """
    found: dict[str, dict[str, Any]] = {}
    for part in catalog:
        for commit in part.history():
            if "run_id" not in commit:
                continue  # the creation of the table
            run = found.setdefault(
                commit["run_id"], {"time_ms": commit["timestamp"], "rows": {}, "what": Counter(), "version": None}
            )
            run["time_ms"] = min(run["time_ms"], commit["timestamp"])
            rows = run["rows"].setdefault(part.name, [0, 0])
            for position, name in enumerate(("rows_added", "rows_removed")):
                rows[position] += int(commit.get(name, 0))
            if "what" in commit:
                run["what"][commit["what"]] += 1
            if part.name == "tokens":
                run["version"] = max(run["version"] or 0, commit["version"])
    version = 0
    ordered = sorted(found.items(), key=lambda item: item[1]["time_ms"])
    made = []
    for run_id, run in ordered:
        version = run["version"] if run["version"] is not None else version
        record = read_record(catalog.root, run_id) or {}
        made.append(
            {
                "run_id": run_id,
                **run,
                "version": version,
                "what": sorted(run["what"]),
                "command": record.get("command"),
                "code": record.get("code"),
            }
        )
    return made


def print_log(config: RunConfig, as_json: bool, console: Console) -> None:
    """Print the runs, newest first. Raises CatalogError without a catalog."""
    catalog = _catalog(config)
    found = runs(catalog)[::-1]
    if as_json:
        console.print_json(json.dumps(found))
        return
    made = table(f"Versions of {catalog.root}", "version#", "run", "command", "rows added and removed", "also")
    for run in found:
        rows = ", ".join(f"{name} +{added} -{removed}" for name, (added, removed) in run["rows"].items())
        made.add_row(str(run["version"]), run["run_id"], run["command"] or "killed", rows, ", ".join(run["what"]))
    console.print(made)


def difference(catalog_one: Catalog, catalog_two: Catalog) -> dict[str, list[str]]:
    """Ids of media by what differs between two versions: `added`, `removed`, `recaptioned`, `retokenized`."""
    columns = ["media_id", "caption", "fingerprint", "reject_reason"]
    one, two = (
        catalog.tokens.scan(columns, pc.field("reject_reason").is_null()) for catalog in (catalog_one, catalog_two)
    )
    at = pc.index_in(two["media_id"], value_set=one["media_id"].combine_chunks())
    is_old = pc.is_valid(at)
    both, before = two.filter(is_old), one.take(at.filter(is_old))
    removed = one.filter(pc.invert(pc.is_in(one["media_id"], value_set=two["media_id"].combine_chunks())))

    def differs(name: str) -> pa.ChunkedArray:
        return pc.not_equal(pc.fill_null(both[name], ""), pc.fill_null(before[name], ""))

    found = {
        "added": two.filter(pc.invert(is_old)),
        "removed": removed,
        "recaptioned": both.filter(differs("caption")),
        "retokenized": both.filter(differs("fingerprint")),
    }
    return {name: sorted(rows["media_id"].to_pylist()) for name, rows in found.items()}


def print_difference(config: RunConfig, one: int, two: int, as_json: bool, console: Console) -> None:
    """Print how version `two` differs from version `one`. Raises CatalogError for a version that is not there."""
    root = _catalog(config).root
    found = difference(Catalog(root, one), Catalog(root, two))
    if as_json:
        console.print_json(json.dumps(found))
        return
    made = table(f"Version {one} to version {two}", "media", "count#", "such as")
    for name, ids in found.items():
        more = ", ..." if len(ids) > _SHOWN_IDS else ""
        made.add_row(name, str(len(ids)), ", ".join(media_id[:12] for media_id in ids[:_SHOWN_IDS]) + more)
    console.print(made)


def _catalog(config: RunConfig) -> Catalog:
    catalog = Catalog(config.root)
    if not catalog.exists():
        raise CatalogError(f"{catalog.root}: no catalog there yet; run `tokenmill run CONFIG` first")
    return catalog
