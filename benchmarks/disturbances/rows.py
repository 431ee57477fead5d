"""Tables and exports of two roots, compared by content."""

import json
import tarfile
from collections import Counter
from pathlib import Path

from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.storage.identity import content_id

PER_RUN = ("run_id", "last_seen_run")
_SHOWN = 3
_SHOWN_CHARS = 600

Contents = dict[str, Counter[str]]


def contents(root: str, exported: Path) -> Contents:
    """Rows of every table without the columns that name a run, each as JSON with how often it is there, and samples of
    an export. Of `sources` those that are present: what is gone is remembered.
    """
    found: Contents = {}
    for table in Catalog(root):
        rows = table.scan().drop([name for name in PER_RUN if name in table.schema.names]).to_pylist()
        rows = [row for row in rows if row.get("status") != "gone"]
        found[table.name] = Counter(json.dumps(row, sort_keys=True) for row in rows)
    found["export"] = Counter()
    for path in sorted(exported.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None:
                    found["export"][f"{member.name} {content_id([file.read()])}"] += 1
    return found


def differences(found: Contents, expected: Contents) -> list[str]:
    """What only one of both has, a few of each table; none when they are equal."""
    told = []
    for name in expected:
        for what, only in (("too much", found[name] - expected[name]), ("missing", expected[name] - found[name])):
            if only:
                shown = [row[:_SHOWN_CHARS] for row in sorted(only)[:_SHOWN]]
                told.append(f"{name}: {only.total()} rows {what}, such as {'; '.join(shown)}")
    return told
