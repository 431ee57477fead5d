"""Decide what to keep: stored scores and rules -> `reject_reason`. Reads no media, so thresholds change for free.

Emu3 2.1 and A.1 drop images below 512 x 512 and keep clips of at least 5 s (inferred) with flow in a range from about
0.04 (inferred). A row rejected by a rule carries `rule: <expression>` as its detail, which is how `decide` knows the
verdicts that it may take back; what could not be read or decoded keeps its reason for ever.
"""

import re

import pyarrow as pa
from pydantic import Field, field_validator

from stages.columns import MEDIA
from stages.rows import MAX_DETAIL_CHARS, pick, replace, without
from stages.rules import Rule
from tokenizer.identity import Config

_RULE = "rule: "
_DECIDABLE = without(MEDIA, "reject_reason", "reject_detail", "fingerprint", "run_id")


class DecideConfig(Config):
    """Rules by name, tried in order; the first that is not true rejects. Raises ValueError for a rule that is wrong."""

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

    @field_validator("image_rules", "video_rules")
    @classmethod
    def _parse(cls, rules: dict[str, str]) -> dict[str, str]:
        for name, keep in rules.items():
            if not re.fullmatch("[a-z][a-z0-9_]*", name):
                raise ValueError(f"rule {name!r}: a name becomes a reject_reason; use lower case letters, digits and _")
            Rule(name, keep, _DECIDABLE)
        return rules


def decide(table: pa.Table, config: DecideConfig) -> pa.Table:
    """`table` of MEDIA rows with the verdicts of `config`: rule rejections are made anew, all others stay.

    Pure and idempotent. A row for which a rule has no answer is rejected too; its detail says which score is missing.
    """
    reasons, details = table["reject_reason"].to_pylist(), table["reject_detail"].to_pylist()
    for i, detail in enumerate(details):
        if detail is not None and detail.startswith(_RULE):
            reasons[i] = details[i] = None
    kinds = table["kind"].to_pylist()
    for kind, rules in (("image", config.image_rules), ("video", config.video_rules)):
        undecided = [i for i, reason in enumerate(reasons) if reason is None and kinds[i] == kind]
        for name, keep in rules.items():
            rule = Rule(name, keep, _DECIDABLE)
            rows = table.take(pa.array(undecided, pa.int64()))
            verdicts = rule(rows).to_pylist()
            for i, verdict in zip(undecided, verdicts, strict=True):
                if verdict is not True:
                    reasons[i] = name
                    details[i] = _detail(rule, None if verdict is False else table.slice(i, 1))
            undecided = [i for i, verdict in zip(undecided, verdicts, strict=True) if verdict is True]
    return replace(table, Decide.writes, {"reject_reason": reasons, "reject_detail": details})


def _detail(rule: Rule, row: pa.Table | None) -> str:
    """`rule: <expression>`, and for a row without an answer the scores that it lacks."""
    detail = _RULE + rule.keep
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

    def __init__(self, config: DecideConfig):
        self._config = config

    def __call__(self, table: pa.Table) -> pa.Table:
        return decide(table, self._config)
