"""Why rows do not stand: the keys by which the config that made them differs from this one.

A row names the run that made it, and the record of that run its config (pipeline/catalog/records.py): so a fingerprint
that changed is told as the keys that changed.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.records import Record, newest_first, read_record
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.refresh.arrow import is_in

REOPENED = "reopened"  # the fingerprint of rows whose files are to be measured anew
LOST = "lost"  # that of rows of `sources` whose media were lost with a damaged file (pipeline/verify)
FOR_SCORES = "scores that rules ask for"

_UNSET = object()
_SHOWN_KEYS = 3
_SHOWN_CHARS = 48
_LOOKED_AT = 20  # records, newest first, for the config of rows and rules
_RULES = ("curate.decide", "curate.text", "curate.clip", "curate.all_scores")


class Why:
    """Reasons, told by the records below `root`."""

    def __init__(self, config: RunConfig, root: str):
        self._root, self._document = root, config.model_dump(mode="json")

    def of_rows(self, stale: pa.Table, run_column: str, *below: str) -> str:
        """Why these rows, with `fingerprint` and the ids of their runs, do not stand: keys below one of `below`."""
        if stale.num_rows and pc.all(pc.equal(stale["fingerprint"], REOPENED)).as_py():
            return self.of_rules()
        if stale.num_rows and pc.all(is_in(stale["fingerprint"], pa.array([LOST, REOPENED]))).as_py():
            return "rows lost with damaged files"
        run_ids = pc.unique(stale[run_column]).to_pylist()
        for run_id in islice(sorted(run_ids, reverse=True), _LOOKED_AT):
            record = read_record(self._root, run_id)
            if record and (keys := changed_keys(record["config"], self._document, below)):
                return _joined(keys)
        return f"another {' or '.join(below)}"

    def of_rules(self, otherwise: str = FOR_SCORES) -> str:
        """How the last config that judged differs from this one."""
        for record in self._records("curate", "redecide"):
            return _joined(changed_keys(record["config"], self._document, _RULES)) or otherwise
        return otherwise

    def of_training(self, tokens_version: int | None) -> str:
        """How the last config that trained on that version of the tokens differs from this one."""
        for record in self._records("train"):
            if any(phase.get("tokens_version") == tokens_version for phase in record["phases"]):
                if keys := changed_keys(record["config"], self._document, ("train",)):
                    return _joined(keys)
                break
        return f"tokens version {tokens_version}, not trained on with this config"

    def _records(self, *phases: str) -> Iterator[Record]:
        """Records of runs that had one of these phases, newest first."""
        for record in islice(newest_first(self._root), _LOOKED_AT):
            if {record["command"], *(phase["phase"] for phase in record["phases"])} & set(phases):
                yield record


def changed_keys(before: Record, after: Record, below: tuple[str, ...]) -> list[str]:
    """`key old -> new` for each key of two configs that differs below one of `below` and changes results."""
    old, new = _flat(before), _flat(after)
    names = [name for name in sorted(old | new) if any(name == top or name.startswith(f"{top}.") for top in below)]
    return [
        f"{name} {_shown(old.get(name, _UNSET))} -> {_shown(new.get(name, _UNSET))}"
        for name in names
        if old.get(name, _UNSET) != new.get(name, _UNSET)
    ]


def _flat(document: Record, above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in document.items():
        if not name.endswith("resources"):
            found |= _flat(value, f"{above}{name}.") if isinstance(value, dict) and value else {f"{above}{name}": value}
    return found


def _shown(value: Any) -> str:
    if value is _UNSET:
        return "(unset)"
    text = "null" if value is None else str(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"


def _joined(keys: list[str]) -> str:
    more = f"; {len(keys) - _SHOWN_KEYS} keys more" if len(keys) > _SHOWN_KEYS else ""
    return "; ".join(keys[:_SHOWN_KEYS]) + more
