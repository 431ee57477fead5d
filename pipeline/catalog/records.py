"""What each run was, in `<root>/runs/RUN_ID.json`: its command, config, code, phases, and the versions that it left.

Rows carry the id of the run that made them, so that a record tells which config a row was made with.
"""

from collections.abc import Iterator
from importlib import metadata
from typing import Any

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig, with_keys_of_today
from tokenmill.storage.checksums import is_as_signed, signed
from tokenmill.storage.errors import DamagedError

_CODE = ("tokenmill", "torch", "transformers", "av", "pillow", "opencv-python", "scenedetect")

Record = dict[str, Any]


def write_record(catalog: Catalog, config: RunConfig, run_id: str, command: str, phases: list[Record]) -> None:
    """Keep what a run did; `phases` are its reports."""
    document = {
        "run_id": run_id,
        "command": command,
        "phases": phases,
        "versions": {table.name: table.version for table in catalog},
        "config": config.model_dump(mode="json"),
        "code": {name: metadata.version(name) for name in _CODE},
    }
    storage.write_json(_uri(catalog.root, run_id), signed(document))


def read_record(root: str, run_id: str) -> Record | None:
    """The record of a run; null for one that was killed. Raises DamagedError."""
    uri = _uri(root, run_id)
    return _read(uri) if storage.exists(uri) else None


def newest_first(root: str) -> Iterator[Record]:
    """All records, read one by one. Raises DamagedError."""
    for name in reversed(storage.list_names(storage.join(root, "runs"))):
        if name.endswith(".json"):
            yield _read(storage.join(root, "runs", name))


def _read(uri: str) -> Record:
    record = storage.read_json(uri)
    if not isinstance(record, dict) or not is_intact(record):
        raise DamagedError(uri)
    return record | {"config": with_keys_of_today(record["config"])}


def is_intact(record: Record) -> bool:
    """Whether a record is as it was written; one of an older release, whether it looks like a record."""
    return is_as_signed(record) and {"run_id", "command", "phases", "versions", "config"} <= record.keys()


def _uri(root: str, run_id: str) -> str:
    return storage.join(root, "runs", f"{run_id}.json")
