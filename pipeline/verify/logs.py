"""The log of a table: commits and checkpoints that are damaged or gone.

Delta's readers stop at a damaged commit, and without a word at the one before a commit that is gone. Here the files of
the log are read as they are: each commit has a seal (pipeline/catalog/log/seals.py), a checkpoint must say what the
commits before it say, and records of runs and copies of commits name the newest version. A damaged commit is put back
from its copy (pipeline/catalog/log/copies.py). Where that is damaged, too, and no checkpoint covers it, an empty one
takes its number, because models and exports know versions by their numbers. The rows that it had brought are lost then,
and what it had taken away is back: the other checks and the next run see to that as far as rows tell, as after kill -9.

Source: the Delta transaction log protocol, actions and checkpoints.
"""

import json
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import Schema
from deltalake.exceptions import DeltaError

from tokenmill import storage
from tokenmill.pipeline.catalog.log import copies, readable, seals
from tokenmill.pipeline.catalog.tables import Table
from tokenmill.pipeline.verify.problems import Aside, Problem, set_aside

_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.parquet")
_HINT = "_last_checkpoint"
_ACTIONS = {"commitInfo", "add", "remove", "metaData", "protocol", "txn", "domainMetadata", "cdc"}
_OF_ADD = {"path", "partitionValues", "size", "modificationTime", "dataChange", "stats"}
_OF_REMOVE = {"path", "dataChange"}
_OF_METADATA = {"id", "format", "schemaString", "partitionColumns", "configuration"}
_THREADS = 8


@dataclass(frozen=True)
class _Commit:
    added: dict[str, int]  # size by path
    removed: frozenset[str]
    timestamp: int


def find(table: Table, recorded: int) -> list[Problem]:
    """Problems of the log of one table; `recorded` is the newest version that a run's record names."""
    return list(_Log(table, recorded).problems())


class _Log:
    def __init__(self, table: Table, recorded: int):
        self._table, self._folder = table, storage.join(table.uri, "_delta_log")
        names = storage.list_names(self._folder)
        self._names = set(names)
        commits = [int(found[1]) for name in names if (found := copies.COMMIT.fullmatch(name))]
        self._checkpoints = [int(found[1]) for name in names if (found := _CHECKPOINT.fullmatch(name))]
        with ThreadPoolExecutor(_THREADS) as threads:
            read = threads.map(lambda version: _commit(self._uri(version)), commits)
            self._commits = dict(zip(commits, read, strict=True))
            copied = sorted(copies.copied(table.uri))
            read = threads.map(lambda version: _commit(copies.copy_uri(table.uri, version)), copied)
            self._copies = dict(zip(copied, read, strict=True))
        self._newest = max([*commits, *copied, *self._checkpoints, recorded])

    def problems(self) -> Iterator[Problem]:
        base = -1  # the newest checkpoint that can be relied on
        for version in sorted(self._checkpoints, reverse=True):
            uri = storage.join(self._folder, f"{version:020}.checkpoint.parquet")
            state, told = _checkpoint(uri, self._table.schema), self._state(version)
            if state is not None and told in (None, state):
                base = version
                break
            yield Problem("log", uri, "damaged checkpoint", "nothing: commits say the same", mend=set_aside(uri))
        if _HINT in self._names and not self._hint_holds(base):
            uri = storage.join(self._folder, _HINT)
            yield Problem("log", uri, "names no checkpoint", "nothing", mend=set_aside(uri))
        for version in range(self._newest + 1):
            if self._commits.get(version) is None and (version > base or version in self._commits):
                yield self._of_commit(version, base)
            elif version in self._commits.keys() & self._copies and self._copies[version] != self._commits[version]:
                yield self._of_copy(version)
        if uncopied := [version for version in self._commits if version not in self._copies]:
            what, hangs = f"{len(uncopied)} commits without a copy", "nothing: they stand"
            mend = partial(self._copy, uncopied)
            yield Problem("log", self._table.uri, what, hangs, is_harmless=True, mend=mend)

    def _of_commit(self, version: int, base: int) -> Problem:
        uri, what = self._uri(version), "damaged commit" if version in self._commits else "commit gone"
        if self._copies.get(version) is not None:
            copy = copies.copy_uri(self._table.uri, version)
            mend = partial(self._replace, uri, copy)
            return Problem("log", uri, what, "nothing: it has a copy", mend=mend)
        if version <= base:
            return Problem("log", uri, what, "its line in `tokenmill log`", mend=set_aside(uri))
        hangs = "the rows that it brought, done again"
        return Problem("log", uri, what, hangs, mend=partial(self._stand_in, version))

    def _of_copy(self, version: int) -> Problem:
        copy = copies.copy_uri(self._table.uri, version)
        mend = partial(self._copy, [version])
        return Problem("log", copy, "damaged copy of a commit", "nothing: the commit stands", mend=mend)

    def _copy(self, versions: list[int], aside: Aside) -> None:
        """Commits to their copies; what a killed run left out, and what an older release never made."""
        for version in versions:
            copy = copies.copy_uri(self._table.uri, version)
            aside.take(copy)
            if storage.exists(self._uri(version)):
                storage.write_bytes(copy, storage.read_bytes(self._uri(version)))

    def _replace(self, uri: str, by: str, aside: Aside) -> None:
        aside.take(uri)
        storage.write_bytes(uri, storage.read_bytes(by))
        self._table.refresh()

    def _uri(self, version: int) -> str:
        return copies.log_uri(self._table.uri, version)

    def _state(self, version: int) -> dict[str, int] | None:
        """Files by the commits alone; null when one is missing."""
        state: dict[str, int] = {}
        for number in range(version + 1):
            if (commit := self._commits.get(number)) is None:
                return None
            for path in commit.removed:
                state.pop(path, None)
            state |= commit.added
        return state

    def _hint_holds(self, base: int) -> bool:
        try:
            hint = storage.read_json(storage.join(self._folder, _HINT))
            return 0 <= hint["version"] <= base and hint["version"] in self._checkpoints
        except (ValueError, KeyError, TypeError):
            return False

    def _stand_in(self, version: int, aside: Aside) -> None:
        """Set aside what there is of a commit and of its copy, and write an empty one."""
        known = [(number, commit.timestamp) for number, commit in self._commits.items() if commit is not None]
        before = [time_ms for number, time_ms in sorted(known) if number < version]
        after = [time_ms for number, time_ms in sorted(known) if number > version]
        time_ms = before[-1] + 1 if before else after[0] - 1 if after else 0
        note = seals.sealed({key: str(value) for key, value in aside.note.items()}, [])
        info = {"timestamp": time_ms, "operation": "WRITE", "operationParameters": {"mode": "Append"}} | note
        lines = [json.dumps({"commitInfo": info})]
        if version == 0:
            lines = _creation(self._table)
        data = "".join(f"{line}\n" for line in lines).encode()
        for uri in (self._uri(version), copies.copy_uri(self._table.uri, version)):
            aside.take(uri)
            storage.write_bytes(uri, data)
        self._table.refresh()


def _creation(table: Table) -> list[str]:
    """The lines of the first commit of such a table."""
    with tempfile.TemporaryDirectory() as name:
        Table(name, table.name).create()
        return Path(name, table.name, "_delta_log", f"{0:020}.json").read_text().splitlines()


def _commit(uri: str) -> _Commit | None:
    """A commit as its file has it; null when it is not as it was written."""
    try:
        actions = [next(iter(json.loads(line).items())) for line in storage.read_bytes(uri).splitlines()]
        info = dict(actions)["commitInfo"]
        parts = {name: [action for key, action in actions if key == name] for name in ("add", "remove", "metaData")}
        needed = ((parts["add"], _OF_ADD), (parts["remove"], _OF_REMOVE), (parts["metaData"], _OF_METADATA))
        if any(not names <= action.keys() for found, names in needed for action in found):
            return None
        entries = [seals.added(action["path"], action["size"], action["stats"]) for action in parts["add"]]
        entries += [seals.removed(action["path"]) for action in parts["remove"]]
        if not parts["add"] and not parts["remove"]:  # the seal of a creation is that of its columns
            fields = [field for action in parts["metaData"] for field in json.loads(action["schemaString"])["fields"]]
            entries += [seals.column(field) for field in fields]
        if not ({key for key, _ in actions} <= _ACTIONS and seals.is_intact(info, entries)):
            return None
        if not all(_is_sound(kind, action) for kind, action in actions):
            return None
        if uri.endswith(f"/{0:020}.json") and not (parts["metaData"] and "protocol" in dict(actions)):
            return None
        added = {action["path"]: int(action["size"]) for action in parts["add"]}
        return _Commit(added, frozenset(action["path"] for action in parts["remove"]), int(info["timestamp"]))
    except (DeltaError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None


def _is_sound(kind: str, action: dict[str, Any]) -> bool:
    """Whether what no seal covers is as a table of ours has it."""
    if kind == "commitInfo":
        return isinstance(action.get("operationParameters", {}), dict)
    if kind == "protocol":
        versions = [action[name] for name in ("minReaderVersion", "minWriterVersion")]
        has_features = (versions[0] < 3 or "readerFeatures" in action) and (
            versions[1] < 7 or "writerFeatures" in action
        )
        return versions[0] in range(1, 4) and versions[1] in range(2, 8) and has_features
    if kind == "metaData":
        Schema.from_json(action["schemaString"])  # raises DeltaError
        return action["format"] == {"provider": "parquet", "options": {}} and action["partitionColumns"] == []
    if kind == "add":
        return action["partitionValues"] == {} and int(action["modificationTime"]) > 0 and action["dataChange"] is True
    return True


def _checkpoint(uri: str, schema: pa.Schema) -> dict[str, int] | None:
    """Sizes of the files by path; null for a checkpoint that cannot be read or is none of this table."""
    try:
        rows = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
        added = rows["add"].filter(pc.is_valid(rows["add"])).to_pylist()
        [metadata] = rows["metaData"].filter(pc.is_valid(rows["metaData"])).to_pylist()
        [_] = rows["protocol"].filter(pc.is_valid(rows["protocol"]))
        is_ours = readable.misfit(Schema.from_json(metadata["schemaString"]), schema) is None
        return {action["path"]: action["size"] for action in added} if is_ours else None
    except (DeltaError, pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None


def unopened(table: Table, error: Exception) -> Problem:
    """A table that cannot be opened with all this set right."""
    return Problem("log", table.uri, str(error), "the whole table: put its _delta_log back from a copy of your own")
