"""Versions of a dataset: what each run changed, and which media differ between two.

A dataset version is a version of the `tokens` table: training pins one, and every command that reads takes one. The
other tables at a version are as they were until the next one was committed.
"""

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.records import read_record
from tokenmill.pipeline.catalog.tables import Catalog


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
