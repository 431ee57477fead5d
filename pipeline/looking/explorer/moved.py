"""Rules with other thresholds, judged anew over stored scores: how many are kept, and which media change sides; of
captions the same.

Scores stand in memory as Arrow columns; of a rule that did not change the verdicts are kept, so that a slider costs one
comparison of one column.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from tokenmill import stages
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.looking.charts import histogram
from tokenmill.pipeline.looking.query import Tables
from tokenmill.pipeline.looking.scores import captions_by, scored
from tokenmill.pipeline.reports.rules_report import moved, num_otherwise, thresholds

_SHOWN = 24
_KEEP, _REJECT = "keep", "reject"
_MARGIN = 0.05  # of what was measured, beyond it at either end of a slider


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


def of_media(config: RunConfig, tables: Tables, kind: str) -> "Moved":
    """The rules of a kind of media. Raises ValueError where it has none."""
    decide = config.curate.decide
    rules = {"image": decide.image_rules, "video": decide.video_rules}.get(kind)
    if not rules:
        raise ValueError(f"{kind}: no rules")
    standing = stages.media_votes(decide.votes)
    place = ("curate", "decide", f"{kind}_rules")
    media = scored(tables, kind, rules)
    return Moved(rules, media, place, config.curate.scorers, standing, num_otherwise(media, config))


def of_captions(config: RunConfig, tables: Tables, captioner: str) -> "Moved":
    """The rules of a captioner. Raises ValueError where it has none."""
    part = config.caption.what
    rules = part.all[captioner].verdicts if captioner in part.all else {}
    if not rules:
        raise ValueError(f"{captioner}: no captioner with rules")
    place = ("caption", "captioners", captioner, "rules")
    return Moved(rules, captions_by(tables, captioner, rules), place)


class Moved:
    """Of rows with media_id, `scored` and what `rules` read. `place`: where in a config the rules stand. `standing`:
    votes that stand above rules, by media_id. `num_otherwise`: rows that stand otherwise in the tables.
    """

    def __init__(
        self,
        rules: dict[str, str],
        rows: pa.Table,
        place: tuple[str, ...],
        scorers: tuple[str, ...] = (),
        standing: Mapping[str, str] | None = None,
        num_otherwise: int = 0,
    ):
        self.rules, self._place, self._scorers = rules, place, scorers
        self.num_otherwise = num_otherwise
        self.media = rows.combine_chunks()
        self._ids = self.media["media_id"].combine_chunks()
        self._standing = self._places(standing or {})
        self._votes = self._places({})
        self._known: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._lock = threading.Lock()
        self._now = self._rejected(rules)

    def compare(self, votes: Mapping[str, str]) -> None:
        """Count from now on how many of these votes, keep or reject by media_id, the rules agree with."""
        self._votes = self._places(votes)

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
            margin = (high - low) * _MARGIN or 1.0  # so that all can be rejected
            low, high = low - margin if low < 0 else max(0.0, low - margin), high + margin
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
        agreed = {vote: int((after[at] == (vote == _REJECT)).sum()) for vote, at in self._votes.items()}
        changed = {name: keep for name, keep in rules.items() if keep != self.rules[name]}
        return {
            "kept": int((~after).sum()),
            "of": len(after),
            "before": int((~self._now).sum()),
            "gained": len(gained),
            "lost": len(lost),
            "open": int(is_open.sum()),
            "gained_media": self._some(gained),
            "lost_media": self._some(lost),
            "votes": {vote: [agreed[vote], len(at)] for vote, at in self._votes.items() if len(at)},
            "yaml": self._yaml(changed),
        }

    def _some(self, places: np.ndarray) -> list[dict[str, Any]]:
        """media_id, and of a caption its text."""
        some = pa.array(places[:: max(1, len(places) // _SHOWN)][:_SHOWN])
        names = [name for name in ("media_id", "caption") if name in self.media.column_names]
        return self.media.select(names).take(some).to_pylist()

    def _places(self, votes: Mapping[str, str]) -> dict[str, np.ndarray]:
        """int64 by vote, keep and reject: the rows that have it."""
        at = pc.index_in(self._ids, value_set=pa.array(list(votes), pa.string())).drop_null() if votes else ()
        if not len(at):
            return {_KEEP: np.empty(0, np.int64), _REJECT: np.empty(0, np.int64)}
        rows = np.flatnonzero(pc.is_in(self._ids, value_set=pa.array(list(votes), pa.string())))
        said = np.array(list(votes.values()))[np.asarray(at)]
        return {vote: rows[said == vote] for vote in (_KEEP, _REJECT)}

    def _yaml(self, rules: dict[str, str]) -> str:
        if not rules:
            return ""
        document: dict[str, Any] = rules
        for key in reversed(self._place):
            document = {key: document}
        return yaml.safe_dump(document, sort_keys=False, width=110)

    def _rejected(self, rules: dict[str, str]) -> np.ndarray:
        found = np.zeros(self.media.num_rows, bool)
        for name, keep in rules.items():
            found |= self._verdicts(name, keep)[0]
        for vote, at in self._standing.items():
            found[at] = vote == _REJECT
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
