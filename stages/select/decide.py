"""Decide what to keep: stored scores and rules -> `reject_reason`. Reads no media, so thresholds change for free.

Emu3 2.1 and A.1 drop images below 512 x 512 and keep clips of at least 5 s (inferred) with flow in a range from about
0.04 (inferred). A row rejected by a rule carries `rule: <expression>` as its detail, which is how `decide` knows the
verdicts that it may take back; what could not be read or decoded keeps its reason for ever.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from tokenmill.stages.select.expensive import states
from tokenmill.stages.select.rules import Rule, check_name
from tokenmill.stages.select.votes import KEEP, media_votes
from tokenmill.stages.table.columns import MEDIA
from tokenmill.stages.table.rows import MAX_DETAIL_CHARS, pick, replace, without
from tokenmill.storage.identity import Config

RulesByKind = Mapping[Any, Mapping[str, str]]  # kind -> name -> expression
RULE = "rule: "  # begins the detail of every verdict of a rule
VOTED_OUT = "voted_out"  # the reason of a row that a person voted out
_VOTED = "a person's vote"
NOT_SCORED = "not_scored"  # the reason of a row whose verdict hangs on scores that are still to be computed
_DECIDABLE = without(MEDIA, "embedding", "scored", "reject_reason", "reject_detail", "fingerprint", "run_id")


class DecideConfig(Config):
    """Rules by name, tried in order; the first that is not true rejects. Raises ValueError for a rule that is wrong."""

    later_fields = frozenset({"votes"})

    image_rules: dict[str, str] = Field(
        default={"resolution": "min(width_px, height_px) >= 512", "aspect": "aspect <= 5"},
        description="too strict: rare pictures are lost; too loose: the tokenizer and the model learn from bad ones",
    )
    video_rules: dict[str, str] = Field(
        default={
            "resolution": "min(width_px, height_px) >= 256",
            "aspect": "aspect <= 5",
            "duration": "duration_s >= 5",
            "flow": "flow >= 0.04",
        },
        description="too strict: rare motion is lost; too loose: the model learns stills and flicker",
    )
    text_rules: dict[str, str] = Field(
        default={},
        description="too strict: rare subjects are lost; too loose: the model learns fragments. Documents have a size "
        "only: size_bytes >= 200",
    )
    votes: str | None = Field(
        default=None,
        description="A file of votes on media, ROOT/votes/media.jsonl of `tokenmill explore`: what a person kept or "
        "rejected is so, whatever the rules say; null: rules alone",
    )

    @field_validator("image_rules", "video_rules", "text_rules", mode="before")
    @classmethod
    def _are_expressions(cls, rules: Any) -> Any:
        for name, keep in rules.items() if isinstance(rules, dict) else ():
            if isinstance(keep, int | float) and not isinstance(keep, bool):
                raise ValueError(
                    f"rule {name!r}: {keep} says no condition; write what is kept, such as 'sharpness >= {keep}'"
                )
        return rules

    @field_validator("image_rules", "video_rules", "text_rules")
    @classmethod
    def _parse(cls, rules: dict[str, str]) -> dict[str, str]:
        for name, keep in rules.items():
            check_name(name)
            if name in (NOT_SCORED, VOTED_OUT):
                raise ValueError(f"rule {name!r}: that name is taken; choose another")
            Rule(name, keep, _DECIDABLE)
        return rules


def columns_read(config: DecideConfig) -> list[str]:
    """The columns of MEDIA that `decide` looks at, each once."""
    rules = (config.image_rules, config.video_rules, config.text_rules)
    of_rules = [column for of in rules for name, keep in of.items() for column in Rule(name, keep, _DECIDABLE).columns]
    return list(dict.fromkeys(["media_id", "kind", "scored", "reject_reason", "reject_detail", *of_rules]))


def decide(
    table: pa.Table, config: DecideConfig, scorers: tuple[str, ...] = (), votes: Mapping[str, str] | None = None
) -> pa.Table:
    """`table` of MEDIA rows with the verdicts of `config`: rule rejections are made anew, all others stay.

    `votes`: of people, by media_id; they stand above rules, not above what could not be read. Pure and idempotent. The
    first rule that is false rejects; so does one without an answer, and the detail says which score is missing. Where
    only scores of `scorers` that did not run stand between a row and its verdict, the reason is `not_scored`: the next
    curate phase scores it.
    """
    reasons, details = table["reject_reason"].to_pylist(), table["reject_detail"].to_pylist()
    for i, detail in enumerate(details):
        if detail is not None and detail.startswith(RULE):
            reasons[i] = details[i] = None
    kinds = table["kind"].to_pylist()
    by_kind = {"image": config.image_rules, "video": config.video_rules, "text": config.text_rules}
    for kind, rules in by_kind.items():
        undecided = [i for i, reason in enumerate(reasons) if reason is None and kinds[i] == kind]
        rows = table.take(pa.array(undecided, pa.int64()))
        waiting: dict[int, Rule] = {}
        for rule, verdicts, is_open in states(rules, rows, scorers):
            for k, i in enumerate(undecided):
                if reasons[i] is not None or verdicts[k] == 1:
                    continue
                if is_open[k]:
                    waiting.setdefault(k, rule)
                else:
                    reasons[i] = rule.name
                    details[i] = _detail(rule, None if verdicts[k] == 0 else rows.slice(k, 1))
        for k, rule in waiting.items():
            if reasons[undecided[k]] is None:
                reasons[undecided[k]] = NOT_SCORED
                details[undecided[k]] = _detail(rule, rows.slice(k, 1))
    if votes:
        for i, media_id in enumerate(table["media_id"].to_pylist()):
            is_of_rules = reasons[i] is None or (details[i] or "").startswith(RULE)
            if is_of_rules and (vote := votes.get(media_id)) is not None:
                reasons[i], details[i] = (None, None) if vote == KEEP else (VOTED_OUT, RULE + _VOTED)
    return replace(table, Decide.writes, {"reject_reason": reasons, "reject_detail": details})


def chosen(media: pa.Table, rules: RulesByKind) -> pa.BooleanArray:
    """Which rows of MEDIA all rules of their kind hold for, and those of kinds without any. Needs `columns_chosen_by`.

    Raises ValueError for a rule that is wrong.
    """
    is_chosen = pa.array(np.ones(len(media), bool))
    for kind, of_kind in rules.items():
        is_other = pc.not_equal(media["kind"], kind)
        for name, keep in of_kind.items():
            holds = pc.fill_null(Rule(name, keep, _DECIDABLE)(media), False)
            is_chosen = pc.and_(is_chosen, pc.or_(is_other.combine_chunks(), holds))
    return is_chosen


def columns_chosen_by(rules: RulesByKind) -> list[str]:
    """The columns of MEDIA that `chosen` looks at, each once. Raises ValueError for a rule that is wrong."""
    of_rules = [Rule(name, keep, _DECIDABLE) for of_kind in rules.values() for name, keep in of_kind.items()]
    return list(dict.fromkeys(["kind", *(column for rule in of_rules for column in rule.columns)]))


def _detail(rule: Rule, row: pa.Table | None) -> str:
    """`rule: <expression>`, and for a row without an answer the scores that it lacks."""
    detail = RULE + rule.keep
    if row is not None:
        missing = [name for name in dict.fromkeys(rule.columns) if row[name].null_count]
        detail += f" (not scored: {', '.join(missing)})"
    return detail[:MAX_DETAIL_CHARS]


class Decide:
    """Scored rows -> the same rows with the verdict of the first rule that is not true. Costs microseconds a row."""

    reads = without(MEDIA, "fingerprint", "run_id")
    writes = pick(MEDIA, "reject_reason", "reject_detail")
    drops: tuple[str, ...] = ()
    rows = "same"

    def __init__(self, config: DecideConfig, scorers: tuple[str, ...] = ()):
        self._config = config
        self._scorers = scorers
        self._votes = media_votes(config.votes)

    def __call__(self, table: pa.Table) -> pa.Table:
        return decide(table, self._config, self._scorers, self._votes)
