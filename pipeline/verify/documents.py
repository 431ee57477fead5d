"""The documents of a root: records of runs, what was forgotten, where exports are."""

from collections.abc import Iterator
from typing import Any

from tokenmill import storage
from tokenmill.pipeline.catalog import export_registry, forgotten, records
from tokenmill.pipeline.verify.problems import Aside, Problem, set_aside
from tokenmill.storage.errors import DamagedError


def find(root: str) -> tuple[list[Problem], dict[str, int]]:
    """Damaged documents; and by table the newest version that a record names."""
    problems, versions = [], dict[str, int]()
    folder = storage.join(root, "runs")
    for uri in (storage.join(folder, name) for name in storage.list_names(folder) if name.endswith(".json")):
        record = _read(uri)
        if not (isinstance(record, dict) and records.is_intact(record)):
            problems.append(Problem("document", uri, "damaged", "what that run was", mend=set_aside(uri)))
            continue
        for name, version in record["versions"].items():
            versions[name] = max(version, versions.get(name, 0))
    problems += _forgotten(root)
    uri = storage.join(root, export_registry.EXPORTS)
    if storage.exists(uri) and not export_registry.is_intact(_read(uri)):
        hangs = "`forget` no longer finds exports: export once more to each place"
        problems.append(Problem("document", uri, "damaged", hangs, mend=set_aside(uri)))
    return problems, versions


def _forgotten(root: str) -> Iterator[Problem]:
    """Of the list and its copy, the whole one mends the other."""
    uris = [storage.join(root, name) for name in (forgotten.LIST, forgotten.COPY)]
    there = [storage.exists(uri) for uri in uris]
    if not any(there):
        return
    found = [_read(uri) if is_there else None for uri, is_there in zip(uris, there, strict=True)]
    intact = [forgotten.is_intact(document) for document in found]
    if intact == [True, False] and not there[1]:
        return  # an older release kept no copy
    for uri, is_intact, other in zip(uris, intact, reversed(uris), strict=True):
        if is_intact:
            continue

        def restore(aside: Aside, uri: str = uri, other: str = other) -> None:
            aside.take(uri)
            storage.write_bytes(uri, storage.read_bytes(other))

        hangs = "forgotten media would come back" + ("" if any(intact) else ": put it back from a copy of your own")
        yield Problem("document", uri, "damaged or gone", hangs, mend=restore if any(intact) else None)


def _read(uri: str) -> Any:
    try:
        return storage.read_json(uri)
    except DamagedError:
        return None
