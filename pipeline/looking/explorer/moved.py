"""Rules with other thresholds, judged anew over stored scores: how many are kept, and which media change sides.

Scores stand in memory as Arrow columns; of a rule that did not change the verdicts are kept, so that a slider costs one
comparison of one column.
"""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import yaml

from tokenmill import stages
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.looking.charts import histogram
from tokenmill.pipeline.looking.query import Tables
from tokenmill.pipeline.looking.scores import scored
from tokenmill.pipeline.reports.rules_report import moved, thresholds

_SHOWN = 24


@dataclass(frozen=True)
class Slider:
    """A threshold that can be moved: number `number` of its rule, between the ends of what was measured."""

    rule: str
    number: int
    column: str
    value: float
    low: float
    high: float
    chart: Any


class Moved:
    """Of one kind of media. Raises ValueError where it has no rules."""

    def __init__(self, config: RunConfig, tables: Tables, kind: str):
        decide = config.curate.decide
        rules = {"image": decide.image_rules, "video": decide.video_rules}.get(kind)
        if not rules:
            raise ValueError(f"{kind}: no rules")
        self.kind, self.rules, self._scorers = kind, rules, config.curate.scorers
        self.media = scored(tables, kind, rules).combine_chunks()
        self._ids = self.media["media_id"].combine_chunks()
        self._known: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._lock = threading.Lock()
        self._now = self._rejected(rules)

    def sliders(self) -> list[Slider]:
        """Every threshold, with the scores of all media."""
        found, numbers = [], dict.fromkeys(self.rules, -1)
        for each in thresholds(self.rules):
            numbers[each.rule] += 1
            measure = stages.Measure(each.rule, each.column, self.media.schema)
            values = pc.fill_null(measure(self.media), float("nan")).to_numpy(zero_copy_only=False)
            is_known = ~np.isnan(values)
            low, high = (0.0, 1.0)
            if is_known.any():
                low, high = (float(end) for end in np.percentile(values[is_known], [0.5, 99.5]))
            low, high = min(low, each.value), max(high, each.value)
            chart = histogram(values[is_known & ~self._now], values[is_known & self._now], [each.value])
            found.append(Slider(each.rule, numbers[each.rule], each.column, each.value, low, high, chart))
        return found

    def judged(self, values: dict[tuple[str, int], float]) -> dict[str, Any]:
        """With these values in place of those of the config. Raises ValueError for a threshold that is not there."""
        rules = dict(self.rules)
        for (name, number), value in values.items():
            if name not in rules or not 0 <= number < sum(each.rule == name for each in thresholds(self.rules)):
                raise ValueError(f"{name}.{number}: no such threshold")
            rules[name] = moved(rules[name], number, value)
        after = self._rejected(rules)
        is_open = np.any([self._verdicts(name, keep)[1] for name, keep in rules.items()], axis=0) & ~after
        gained, lost = np.flatnonzero(self._now & ~after), np.flatnonzero(~self._now & after)
        changed = {name: keep for name, keep in rules.items() if keep != self.rules[name]}
        return {
            "kept": int((~after).sum()),
            "of": len(after),
            "before": int((~self._now).sum()),
            "gained": len(gained),
            "lost": len(lost),
            "open": int(is_open.sum()),
            "gained_ids": self._some(gained),
            "lost_ids": self._some(lost),
            "yaml": self._yaml(changed),
        }

    def _some(self, places: np.ndarray) -> list[str]:
        return [self._ids[place].as_py() for place in places[:: max(1, len(places) // _SHOWN)][:_SHOWN].tolist()]

    def _yaml(self, rules: dict[str, str]) -> str:
        if not rules:
            return ""
        document = {"curate": {"decide": {f"{self.kind}_rules": rules}}}
        return yaml.safe_dump(document, sort_keys=False, width=110)

    def _rejected(self, rules: dict[str, str]) -> np.ndarray:
        found = np.zeros(self.media.num_rows, bool)
        for name, keep in rules.items():
            found |= self._verdicts(name, keep)[0]
        return found

    def _verdicts(self, name: str, keep: str) -> tuple[np.ndarray, np.ndarray]:
        """bool (rows,) twice: whether a rule rejects, and whether it is open. The config's are kept."""
        if name in self._known and keep == self.rules[name]:
            return self._known[name]
        ((_, verdicts, is_open),) = stages.states({name: keep}, self.media, self._scorers)
        made = (verdicts != 1) & ~is_open, is_open
        if keep == self.rules[name]:
            with self._lock:
                self._known[name] = made
        return made
