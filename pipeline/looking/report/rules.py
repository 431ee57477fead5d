"""Each rule of the config: how many it rejects, the scores that it reads, and the media just on either side."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from tokenmill import stages
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.looking.charts import histogram
from tokenmill.pipeline.looking.query import Tables
from tokenmill.pipeline.looking.scores import scored
from tokenmill.pipeline.reports.rules_report import RuleCount, Threshold, count_rules, num_otherwise, thresholds

_NEAR = 6  # media on either side of a threshold


@dataclass(frozen=True)
class Scale:
    """A comparison of a rule with a number. `below` and `above`: the media nearest to it, (media_id, score)."""

    column: str
    value: float
    chart: Markup
    below: list[tuple[str, float]]
    above: list[tuple[str, float]]


@dataclass(frozen=True)
class RuleFigures:
    """A rule over all scored media of a kind; `rejected`: some that it alone rejects where it compares no number."""

    count: RuleCount
    scales: list[Scale]
    rejected: list[str]


@dataclass(frozen=True)
class KindFigures:
    """All rules of a kind of media."""

    kind: str
    num_scored: int
    num_kept: int
    num_otherwise: int  # of those that stand in the tables as kept, or as rejected, and would not by these rules
    rules: list[RuleFigures]

    @property
    def shown(self) -> list[str]:
        """media_ids of all examples."""
        near = [pair for rule in self.rules for scale in rule.scales for pair in (*scale.below, *scale.above)]
        return [*(media_id for media_id, _ in near), *(each for rule in self.rules for each in rule.rejected)]


def rule_figures(config: RunConfig, tables: Tables) -> Iterator[KindFigures]:
    """Of images and clips, as far as there are rules and scores."""
    decide = config.curate.decide
    for kind, rules in (("image", decide.image_rules), ("video", decide.video_rules)):
        media = scored(tables, kind, rules) if rules else None
        if media is not None and media.num_rows:
            yield _of_kind(kind, rules, media, config)


def _of_kind(kind: str, rules: dict[str, str], media: pa.Table, config: RunConfig) -> KindFigures:
    scorers = config.curate.scorers
    ids = media["media_id"].combine_chunks()
    fails = {rule.name: (verdicts != 1) & ~is_open for rule, verdicts, is_open in stages.states(rules, media, scorers)}
    is_rejected = np.any(list(fails.values()), axis=0)
    found = []
    for count in count_rules(rules, media, scorers):
        scales = [_scale(each, media, ids, is_rejected) for each in thresholds(rules) if each.rule == count.name]
        places = [] if scales else np.flatnonzero(fails[count.name])[: 2 * _NEAR].tolist()
        found.append(RuleFigures(count, scales, [ids[place].as_py() for place in places]))
    return KindFigures(kind, media.num_rows, int((~is_rejected).sum()), num_otherwise(media, config), found)


def _scale(threshold: Threshold, media: pa.Table, ids: pa.StringArray, is_rejected: np.ndarray) -> Scale:
    measure = stages.Measure(threshold.rule, threshold.column, media.schema)
    values = pc.fill_null(measure(media), float("nan")).to_numpy(zero_copy_only=False)
    is_known = ~np.isnan(values)
    chart = histogram(values[is_known & ~is_rejected], values[is_known & is_rejected], [threshold.value])
    return Scale(
        threshold.column,
        threshold.value,
        chart,
        _nearest(values, ids, is_known & (values < threshold.value), threshold.value)[::-1],
        _nearest(values, ids, is_known & (values >= threshold.value), threshold.value),
    )


def _nearest(values: np.ndarray, ids: pa.StringArray, is_meant: np.ndarray, value: float) -> list[tuple[str, float]]:
    places = np.flatnonzero(is_meant)
    distances = np.abs(values[places] - value)
    if len(places) > _NEAR:
        places = places[np.argpartition(distances, _NEAR)[:_NEAR]]
    ordered = sorted(places.tolist(), key=lambda place: abs(values[place] - value))
    return [(ids[place].as_py(), float(values[place])) for place in ordered]
