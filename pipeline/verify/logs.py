"""The log of a table: commits and checkpoints that are damaged or gone.

Delta's readers stop at a damaged commit, and without a word at the one before a commit that is gone. Here the files of
the log are read as they are: each commit has a seal (pipeline/catalog/seals.py), a checkpoint must say what the commits
before it say, and the records of runs name the newest version. A commit that no checkpoint covers is replaced by an
empty one of the same number, because models and exports know versions by their numbers. The rows that it had brought
are lost then, and what it had taken away is back: the other checks and the next run see to both, as after kill -9.

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
from tokenmill.pipeline.catalog import readable, seals
from tokenmill.pipeline.catalog.tables import Table
from tokenmill.pipeline.verify.problems import Aside, Problem, set_aside

_COMMIT = re.compile(r"(\d{20})\.json")
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
        commits = [int(found[1]) for name in names if (found := _COMMIT.fullmatch(name))]
        self._checkpoints = [int(found[1]) for name in names if (found := _CHECKPOINT.fullmatch(name))]
        with ThreadPoolExecutor(_THREADS) as threads:
            read = threads.map(lambda version: _commit(self._uri(version)), commits)
            self._commits = dict(zip(commits, read, strict=True))
        self._newest = max([*commits, *self._checkpoints, recorded])

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
        for version, commit in sorted(self._commits.items()):
            if commit is None and version <= base:
                uri, hangs = self._uri(version), "its line in `tokenmill log`"
                yield Problem("log", uri, "damaged commit", hangs, mend=set_aside(uri))
        for version in range(base + 1, self._newest + 1):
            if self._commits.get(version) is None:
                what = "damaged commit" if version in self._commits else "commit gone"
                hangs = "the rows that it brought, done again"
                yield Problem("log", self._uri(version), what, hangs, mend=partial(self._stand_in, version))

    def _uri(self, version: int) -> str:
        return storage.join(self._folder, f"{version:020}.json")

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
        """Set aside what there is of a commit, and write an empty one."""
        aside.take(self._uri(version))
        known = [(number, commit.timestamp) for number, commit in self._commits.items() if commit is not None]
        before = [time_ms for number, time_ms in sorted(known) if number < version]
        after = [time_ms for number, time_ms in sorted(known) if number > version]
        time_ms = before[-1] + 1 if before else after[0] - 1 if after else 0
        note = seals.sealed({key: str(value) for key, value in aside.note.items()}, [])
        info = {"timestamp": time_ms, "operation": "WRITE", "operationParameters": {"mode": "Append"}} | note
        lines = [json.dumps({"commitInfo": info})]
        if version == 0:
            lines = _creation(self._table)
        storage.write_bytes(self._uri(version), "".join(f"{line}\n" for line in lines).encode())
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
        return versions[0] in range(1, 4) and versions[1] in range(2, 8)
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
