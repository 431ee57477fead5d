"""Rules over captions: stored columns -> what counts. Asks no model, so thresholds change for free.

As for media (stages/select/decide.py), a caption that a rule rejects carries `rule: <expression>` as its detail, by
which the verdict is taken back when rules change; what a server refused keeps its reason. The text stays in its row.
"""

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.stages.caption.captioners.config import CHECKED
from tokenmill.stages.caption.texts.measure import of_text
from tokenmill.stages.select.decide import RULE
from tokenmill.stages.select.rules import Rule
from tokenmill.stages.table.columns import CAPTIONS
from tokenmill.stages.table.rows import MAX_DETAIL_CHARS, pick, replace

_NOT_SCORED = " (not scored)"  # a rule without an answer
_VERDICT = ("reject_reason", "reject_detail")


def judge_captions(rows: pa.Table, rules: dict[str, str]) -> pa.Table:
    """`rows` of CAPTIONS of one captioner, with the verdict of the first of `rules` that is not true. What a rule reads
    of a text and the row does not say yet, as of a source's caption, is measured. Pure and idempotent.
    """
    is_of_rule = pc.fill_null(pc.starts_with(rows["reject_detail"], RULE), False)
    reasons, details = (pc.if_else(is_of_rule, pa.scalar(None, pa.string()), rows[name]) for name in _VERDICT)
    parsed = [Rule(name, keep, CHECKED) for name, keep in rules.items()]
    rows = _measured(rows, [column for rule in parsed for column in rule.columns])
    is_answer = pc.is_valid(rows["caption"])
    for rule in parsed:
        holds = rule(rows)
        fails = pc.and_(pc.invert(pc.fill_null(holds, False)), pc.and_(is_answer, pc.is_null(reasons)))
        reasons = pc.if_else(fails, rule.name, reasons)
        detail = (RULE + rule.keep)[: MAX_DETAIL_CHARS - len(_NOT_SCORED)]
        details = pc.if_else(fails, pc.if_else(pc.is_null(holds), detail + _NOT_SCORED, detail), details)
    values = {"reject_reason": reasons, "reject_detail": details}
    return pa.table([values.get(name, rows[name]) for name in rows.column_names], schema=rows.schema)


class JudgeCaptions:
    """Captions of one captioner -> the same with its verdicts. Costs microseconds a row."""

    reads = pick(CAPTIONS, "caption", *_VERDICT, *CHECKED.names)
    writes = pick(CAPTIONS, *_VERDICT)
    drops: tuple[str, ...] = ()
    rows = "same"

    def __init__(self, rules: dict[str, str]):
        self._rules = rules

    def __call__(self, table: pa.Table) -> pa.Table:
        return judge_captions(table, self._rules)


def columns_judged(rules: dict[str, str]) -> list[str]:
    """The columns that `judge_captions` looks at."""
    read = [column for name, keep in rules.items() for column in Rule(name, keep, CHECKED).columns]
    return list(dict.fromkeys(["caption", *_VERDICT, *read]))


def _measured(rows: pa.Table, names: list[str]) -> pa.Table:
    lacks = [name for name in dict.fromkeys(names) if of_text("", [name]) and rows[name].null_count]
    if not lacks:
        return rows
    values = {name: rows[name].to_pylist() for name in lacks}
    for i, text in enumerate(rows["caption"].to_pylist()):
        if text is not None and any(values[name][i] is None for name in lacks):
            for name, value in of_text(text, lacks).items():
                values[name][i] = value
    return replace(rows, pick(CAPTIONS, *lacks), values)
