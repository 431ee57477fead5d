"""`tokenmill rules`: what each rule of the config does to the stored scores, and what moving its thresholds would do.

Everything is computed from stored scores; no medium is read. What was not scored leaves a rule open: such media are
counted apart, since the next curate phase decides them.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.reports.rules_plot import Histogram, draw_histograms
from tokenmill.pipeline.reports.terminal import shown, table
from tokenmill.stages import judge_captions
from tokenmill.stages.select.decide import RULE, Decide
from tokenmill.stages.select.expensive import states

OTHERWISE = "judged by other rules (--set, or the file was another); the next run judges by these"
_FACTORS = (0.5, 0.8, 1.25, 2.0)


@dataclass(frozen=True)
class RuleCount:
    """Media that a rule rejects: whatever the others say, after those before it, and when all others hold; and those
    for which it is open.
    """

    name: str
    keep: str
    alone: int
    in_sequence: int
    only_this: int
    is_open: int


@dataclass(frozen=True)
class Threshold:
    """A comparison with a number inside a rule: `column` op `value`."""

    rule: str
    column: str
    value: float
    expressions: dict[float, str]  # another value -> the whole rule with it


def scored_media(catalog: Catalog, kind: str) -> pa.Table:
    """Rows of one kind that were scored: kept ones, and those that a rule rejected or left open."""
    media = catalog.media.scan(where=pc.field("kind") == kind)
    by_rule = pc.fill_null(pc.starts_with(media["reject_detail"], RULE), False)
    return media.filter(pc.or_(pc.is_null(media["reject_reason"]), by_rule))


def count_rules(rules: dict[str, str], media: pa.Table, scorers: tuple[str, ...]) -> list[RuleCount]:
    """One entry per rule, in order."""
    found = list(states(rules, media, scorers))
    rejects = [(verdicts != 1) & ~is_open for _, verdicts, is_open in found]
    counts = []
    before = np.zeros(media.num_rows, bool)
    for number, (rule, _, is_open) in enumerate(found):
        others = np.zeros(media.num_rows, bool)
        for other in (other for at, other in enumerate(rejects) if at != number):
            others |= other
        mine = rejects[number]
        sums = (int(part.sum()) for part in (mine, mine & ~before, mine & ~others, is_open))
        counts.append(RuleCount(rule.name, rule.keep, *sums))
        before |= mine
    return counts


def num_otherwise(media: pa.Table, config: RunConfig) -> int:
    """How many stand in the tables as kept and would not be by the config's rules, or the other way round. `media`:
    rows with verdicts and what the rules read.
    """
    decide, kinds = config.curate.decide, set(pc.unique(media["kind"]).to_pylist())
    others: dict[str, dict[str, str]] = {
        f"{kind}_rules": {} for kind in ("image", "video", "text") if kind not in kinds
    }
    now = Decide(decide.model_copy(update=others), config.curate.scorers)(media)["reject_reason"]
    return pc.sum(pc.xor(pc.is_null(media["reject_reason"]), pc.is_null(now))).as_py() or 0


def count_kept(rules: dict[str, str], media: pa.Table, scorers: tuple[str, ...]) -> int:
    """Media that no rule rejects; open ones among them."""
    rejected = np.zeros(media.num_rows, bool)
    for _, verdicts, is_open in states(rules, media, scorers):
        rejected |= (verdicts != 1) & ~is_open
    return int((~rejected).sum())


def thresholds(rules: dict[str, str]) -> Iterator[Threshold]:
    """Every comparison with a number other than zero, and the rule with that number halved, doubled and so on."""
    for name, keep in rules.items():
        for number, (column, value) in enumerate(_compared(ast.parse(keep.strip(), mode="eval"))):
            others = {value * factor: moved(keep, number, value * factor) for factor in _FACTORS}
            yield Threshold(name, column, value, others)


def moved(keep: str, number: int, value: float) -> str:
    """A rule with another value for the comparison of that number, counted from 0 as `thresholds` does."""
    tree = ast.parse(keep.strip(), mode="eval")
    nodes = [node for _, _, node in _numbers(tree)]
    nodes[number].value = int(value) if float(value).is_integer() else value
    return ast.unparse(tree)


def _compared(tree: ast.AST) -> list[tuple[str, float]]:
    return [(column, value) for column, value, _ in _numbers(tree)]


def _numbers(tree: ast.AST) -> list[tuple[str, float, ast.Constant]]:
    """Of each comparison with a number other than zero: what is compared, the number, its node."""
    return [
        (next(ast.unparse(other) for other in (compare.left, *compare.comparators) if other is not node), value, node)
        for compare in ast.walk(tree)
        if isinstance(compare, ast.Compare)
        for node in (compare.left, *compare.comparators)
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and (value := float(node.value))
    ]


def print_rules(config: RunConfig, out: Path | None, console: Console) -> None:
    """Tables for images, clips and captions, and, where `out` is given, histograms as PNG. Raises CatalogError without
    a catalog.
    """
    catalog = Catalog(config.root, config.version)
    if not catalog.exists():
        raise CatalogError(f"{catalog.root}: no catalog there yet; run `tokenmill curate CONFIG` first")
    histograms: list[Histogram] = []
    for noun, rules, media, scorers in _judged(config, catalog):
        if not media.num_rows or not rules:
            continue
        kept = count_kept(rules, media, scorers)
        title = f"{media.num_rows} {noun}, {kept} pass"
        made = table(title, "rule", "keeps", "fail#", "first to fail#", "fail only this#", "open#")
        for row in count_rules(rules, media, scorers):
            numbers = (str(number) for number in (row.alone, row.in_sequence, row.only_this, row.is_open))
            made.add_row(row.name, shown(row.keep), *numbers)
        console.print(made)
        number = num_otherwise(media, config) if "kind" in media.column_names else 0  # of captions there is none
        if number:
            console.print(f"{number} stand otherwise in the tables: {OTHERWISE}", style="yellow", highlight=False)
        made = table("If a threshold moved: how many pass", "rule", "threshold", *(f"x {f:g}#" for f in (0.5, 0.8)))
        for heading in ("now", *(f"x {factor:g}" for factor in (1.25, 2.0))):
            made.add_column(heading, justify="right")
        found = list(thresholds(rules))
        for each in found:
            passing = [count_kept({**rules, each.rule: text}, media, scorers) for text in each.expressions.values()]
            low, high = passing[:2], passing[2:]
            made.add_row(each.rule, f"{shown(each.column)} {each.value:g}", *map(str, [*low, kept, *high]))
        console.print(made)
        histograms += _histograms(noun, rules, media, found, scorers)
    if not histograms:
        console.print("No rules, or nothing scored yet.", highlight=False)
    elif out is None:
        console.print("Histograms and borderline media: `tokenmill report CONFIG`, or --out FILE.png", highlight=False)
    else:
        draw_histograms(histograms, out)
        console.print(f"Look at {out}", highlight=False)


def _judged(config: RunConfig, catalog: Catalog) -> Iterator[tuple[str, dict[str, str], pa.Table, tuple[str, ...]]]:
    """What they are, rules, rows and scorers: of images, of clips, and of the captions of each captioner in use."""
    part, captions = config.curate, config.caption
    yield "scored images", part.decide.image_rules, scored_media(catalog, "image"), part.scorers
    yield "scored clips", part.decide.video_rules, scored_media(catalog, "video"), part.scorers
    for name in captions.order:
        rules = captions.all[name].verdicts
        rows = catalog.captions.scan(where=(pc.field("captioner") == name) & pc.field("caption").is_valid())
        rows = judge_captions(rows, rules)  # which measures what a rule reads and a row does not say yet
        nothing = pa.nulls(rows.num_rows, pa.string())
        yield f"captions by {name}", rules, rows.append_column("scored", nothing), ()


def _histograms(
    noun: str, rules: dict[str, str], media: pa.Table, found: list[Threshold], scorers: tuple[str, ...]
) -> Iterator[Histogram]:
    rejected = np.zeros(media.num_rows, bool)
    columns: dict[str, None] = {}
    for rule, verdicts, is_open in states(rules, media, scorers):
        rejected |= (verdicts != 1) & ~is_open
        columns |= dict.fromkeys(rule.columns)
    for name in columns:
        if not pa.types.is_floating(media.schema.field(name).type) and not pa.types.is_integer(media[name].type):
            continue
        values = pc.cast(media[name], pa.float64()).to_numpy()
        is_known = ~np.isnan(values)
        if is_known.any():
            lines = [each.value for each in found if name in each.column]
            label = f"{name} of {noun.removeprefix('scored ')}"
            yield Histogram(label, values[is_known & ~rejected], values[is_known & rejected], lines)
