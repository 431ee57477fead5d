"""What captions by a model will cost, from what the last run of that captioner took: tokens, hours, money."""

from itertools import islice

from tokenmill.pipeline.catalog.records import newest_first
from tokenmill.stages import CaptionerConfig

_LOOKED_AT = 20  # records, newest first


def spent_before(root: str) -> dict[str, dict[str, float]]:
    """By captioner what its newest run took: `captions`, `tokens_in`, `tokens_out`, `elapsed_s`."""
    found: dict[str, dict[str, float]] = {}
    for record in islice(newest_first(root), _LOOKED_AT):
        for phase in record["phases"]:
            for name, spent in phase.get("captioners", {}).items():
                if spent.get("captions"):
                    found.setdefault(name, spent)
    return found


def forecast(spent: dict[str, float] | None, captioner: CaptionerConfig, number: int) -> str:
    """`1,200 tokens in, 300 out, costs 0.05, 0.02 h as in the last run`, of `number` captions; nothing where none is
    known.
    """
    if not spent or not number:
        return ""
    each = {key: spent[key] / spent["captions"] * number for key in ("tokens_in", "tokens_out", "elapsed_s")}
    told = [f"about {each['tokens_in']:,.0f} tokens in, {each['tokens_out']:,.0f} out"]
    if (costs := captioner.resources.costs(each["tokens_in"], each["tokens_out"])) is not None:
        told.append(f"costs {costs:,.2f}")
    return ", ".join([*told, f"{each['elapsed_s'] / 3600:,.2f} h as in the last run"])
