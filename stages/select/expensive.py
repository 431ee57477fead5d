"""Which expensive scores can still change a verdict, by three-valued logic over the scores that are known.

A rule is true, false or open. A medium with a false rule is rejected, whatever its other scores are, so the expensive
ones are left out; where all rules are true without them, they are left out too. What was left out is null and its
scorer's name is missing in the row's `scored`, which tells it from a score that has no value (the flow of one frame).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.stages.select.rules import Rule

# Expensive scorers, cheapest first, and the columns that each fills. One in use is called `name:identity`, where the
# identity stands for its config and weights, so that another model's scores are told from those that are stored.
SCORERS: dict[str, tuple[str, ...]] = {
    "text": ("text_area", "text_boxes"),
    "clip": ("aesthetic", "similarity", "watermark", "nsfw", "embedding"),
}


def columns_of(scorer: str) -> tuple[str, ...]:
    """What a scorer in use fills."""
    return SCORERS[scorer.partition(":")[0]]


def parse_scored(text: str | None) -> frozenset[str]:
    """The scorers named in a `scored` value."""
    return frozenset((text or "").split())


def add_scored(text: str | None, scorer: str) -> str:
    """`text` with one more scorer, instead of another identity of it."""
    columns = columns_of(scorer)
    return " ".join(sorted({other for other in parse_scored(text) if columns_of(other) != columns} | {scorer}))


@dataclass(frozen=True)
class Lazy:
    """What the stages know of the verdict to come: rules by kind, the scorers in use.

    `all_scores` computes everything for whatever decodes, for research.
    """

    image_rules: dict[str, str]
    video_rules: dict[str, str]
    scorers: tuple[str, ...] = ()
    all_scores: bool = False

    def name(self, scorer: str) -> str | None:
        """`name:identity` of scorer `text` or `clip`; null when it is not in use."""
        return next((full for full in self.scorers if full.partition(":")[0] == scorer), None)

    def wants(self, scorer: str, table: pa.Table) -> np.ndarray:
        """bool (rows,): for which rows of `table` (columns of MEDIA) `scorer`, `text` or `clip`, has to run now."""
        wanted = np.zeros(table.num_rows, bool)
        if (full := self.name(scorer)) is None:
            return wanted
        undecided = pc.is_null(table["reject_reason"]).to_numpy(zero_copy_only=False)
        pending = np.array([full not in parse_scored(text) for text in table["scored"].to_pylist()], bool)
        for kind, rules in (("image", self.image_rules), ("video", self.video_rules)):
            is_kind = pc.equal(table["kind"], kind).to_numpy(zero_copy_only=False)
            rows = np.flatnonzero(undecided & pending & is_kind)
            if self.all_scores or not len(rows):
                wanted[rows] = True
                continue
            rejected, asked = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
            for rule, verdicts, is_open in states(rules, table.take(pa.array(rows)), self.scorers):
                rejected |= (verdicts != 1) & ~is_open
                if set(rule.columns) & set(SCORERS[scorer]):
                    asked |= is_open
            wanted[rows] = asked & ~rejected
        return wanted


def states(
    rules: dict[str, str], table: pa.Table, scorers: tuple[str, ...]
) -> Iterator[tuple[Rule, np.ndarray, np.ndarray]]:
    """For each rule: the rule, its verdicts int8 (rows,) 1 true, 0 false, -1 null, and bool (rows,) where it is open.

    Open: null, and it reads a column of one of `scorers` that the row's `scored` does not name. What another identity
    of a scorer has stored counts as null.
    """
    lacks = _lacking(table["scored"], scorers)
    for scorer, is_lacking in lacks.items():
        for name in columns_of(scorer):
            if name in table.column_names and is_lacking.any():
                column = pc.if_else(pa.array(is_lacking), pa.scalar(None, table.schema.field(name).type), table[name])
                table = table.set_column(table.column_names.index(name), name, column)
    for name, keep in rules.items():
        rule = Rule(name, keep, table.schema)
        verdicts = pc.fill_null(rule(table).cast(pa.int8()), -1).to_numpy(zero_copy_only=False)
        is_open = np.zeros(table.num_rows, bool)
        for scorer, is_lacking in lacks.items():
            if set(columns_of(scorer)) & set(rule.columns):
                is_open |= is_lacking
        yield rule, verdicts, is_open & (verdicts == -1)


def _lacking(scored: pa.ChunkedArray, scorers: tuple[str, ...]) -> dict[str, np.ndarray]:
    """By scorer, bool (rows,): whether a value of `scored` does not name it. There are few different values."""
    coded = pc.dictionary_encode(pc.fill_null(scored.combine_chunks(), ""))
    known = [parse_scored(text) for text in coded.dictionary.to_pylist()]
    codes = coded.indices.to_numpy(zero_copy_only=False)
    return {scorer: np.array([scorer not in done for done in known], bool)[codes] for scorer in scorers}
