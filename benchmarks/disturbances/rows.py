"""Tables and exports of two roots, compared by content.

A content that stands at several places is named by `media` at the one where it was first seen, as long as it stands
there, so at which is history: any of its places counts as the first of them.
"""

import json
import tarfile
from collections import Counter, defaultdict
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
    tables = {table.name: table.scan().to_pylist() for table in Catalog(root)}
    tables["sources"] = [row for row in tables["sources"] if row["status"] != "gone"]
    places = defaultdict(list)
    for row in tables["sources"]:
        places[row["file_id"]].append((row["uri"], row["member"] or "", row["offset_bytes"] or 0))
    for row in tables["media"]:
        of_content = sorted(places[row["file_id"]])
        if (row["uri"], row["member"] or "", row["offset_bytes"] or 0) in of_content:
            row["uri"], row["member"], row["offset_bytes"] = of_content[0]
    found: Contents = {}
    for name, rows in tables.items():
        kept = [{column: value for column, value in row.items() if column not in PER_RUN} for row in rows]
        found[name] = Counter(json.dumps(row, sort_keys=True) for row in kept)
    found["export"] = Counter()
    for path in sorted(exported.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None:
                    found["export"][f"{member.name} {content_id([file.read()])}"] += 1
    return found


def differences(found: Contents, expected: Contents) -> list[str]:
    """What only one of both has, a few rows of each table; where both have the medium, the columns that differ."""
    told = []
    for name in expected:
        more, less = (
            sorted((found[name] - expected[name]).elements()),
            sorted((expected[name] - found[name]).elements()),
        )
        if more or less:
            wanted = {_key(row): row for row in less}
            shown = [_told(row, wanted.pop(_key(row), None)) for row in more[:_SHOWN]]
            shown += [f"missing: {row[:_SHOWN_CHARS]}" for row in list(wanted.values())[:_SHOWN]]
            told.append(f"{name}: {len(more)} rows too much, {len(less)} missing, such as {'; '.join(shown)}")
    return told


def _key(row: str) -> str:
    if not row.startswith("{"):
        return row.split()[0]
    columns = json.loads(row)
    return columns.get("media_id") or f"{columns['uri']} {columns['member']}"


def _told(row: str, other: str | None) -> str:
    if other is None or not row.startswith("{"):
        return f"too much: {row[:_SHOWN_CHARS]}"
    columns, expected = json.loads(row), json.loads(other)
    pairs = {name: (value, expected[name]) for name, value in columns.items() if value != expected[name]}
    return f"{_key(row)}: " + ", ".join(f"{name} {pair[0]!r} instead of {pair[1]!r}" for name, pair in pairs.items())
