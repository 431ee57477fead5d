"""A copy of each commit of a table's log, in `<table>/_log_copies`, because nothing else says which files a table has.

It is written after the commit: a run killed in between leaves one copy to be made by the next commit.
"""

import re

from tokenmill import storage

COMMIT = re.compile(r"(\d{20})\.json")
_MOST = 100  # commits of an older release that get a copy


def log_uri(table_uri: str, version: int) -> str:
    """Where a commit stands."""
    return storage.join(table_uri, "_delta_log", f"{version:020}.json")


def copy_uri(table_uri: str, version: int) -> str:
    """Where its copy stands."""
    return storage.join(table_uri, "_log_copies", f"{version:020}.json")


def copied(table_uri: str) -> set[int]:
    """Versions that have a copy."""
    names = storage.list_names(storage.join(table_uri, "_log_copies"))
    return {int(found[1]) for name in names if (found := COMMIT.fullmatch(name))}


def copy_commits(table_uri: str, after: int | None, version: int) -> None:
    """Copy the commits up to `version`; those up to `after` have a copy (null: look)."""
    if after is None:
        after = max(copied(table_uri), default=-1)
    for number in range(max(after + 1, version - _MOST), version + 1):
        if storage.exists(log_uri(table_uri, number)):
            storage.write_bytes(copy_uri(table_uri, number), storage.read_bytes(log_uri(table_uri, number)))


def drop_copies(table_uri: str) -> None:
    """Delete copies of commits older than the log goes back."""
    names = storage.list_names(storage.join(table_uri, "_delta_log"))
    oldest = min(int(found[1]) for name in names if (found := COMMIT.fullmatch(name)))
    for version in copied(table_uri):
        if version < oldest:
            storage.delete_file(copy_uri(table_uri, version))
