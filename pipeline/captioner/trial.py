"""`tokenmill captioner try`: a few media shown to captioners, to compare models and prompts before paying for all.

Nothing is written but the picture. It asks in this process, one captioner after the other.
"""

import json
import time
from contextlib import closing
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from tokenmill import stages
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.reports.caption_sheet import Line, Written, draw_lines, some_media
from tokenmill.pipeline.reports.terminal import table
from tokenmill.pipeline.reports.verdict_sheet import square
from tokenmill.pipeline.run.served import served_here
from tokenmill.stages import CaptionError


def try_captioners(
    config: RunConfig, names: list[str], limit: int, kind: str | None, seed: int, out: Path, console: Console
) -> None:
    """Ask the captioners `names`, none: those that `caption.use` needs, about up to `limit` kept media; draw and count.

    Raises CatalogError without media, CaptionError and PromptError where a captioner cannot be asked.
    """
    part = config.caption.what
    for name in names:
        if name not in part.all:
            raise CaptionError(f"{name}: not among `caption.captioners`; known: {', '.join(part.all)}")
    order = part.model_copy(update={"use": tuple(names)}).order if names else part.order
    for name in order:
        stages.check_reachable(name, part.all[name])
    media, num_all = some_media(config, kind, limit, seed)
    rows = media.to_pylist()
    written: dict[str, dict[str, Written]] = {row["media_id"]: {} for row in rows}
    made = table(
        f"{len(rows)} of {num_all} media", "captioner", "asked#", "count#", "tokens in#", "out#", "s#", "all cost#"
    )
    for name in order:
        one = part.all[name]
        where = stages.Rule("where", one.where or "true", media.schema)(media).to_pylist()
        asked = [row for row, fits in zip(rows, where, strict=True) if fits and _is_asked(one, row, written)]
        start, answers = time.monotonic(), list[dict]()
        if asked:
            todo = [{**row, "read": _read(one, written[row["media_id"]])} for row in asked]
            with (
                served_here(config, name) as known,
                closing(stages.Caption(name, known.caption.all[name], config.fetched)) as stage,
            ):
                answers = stage(pa.Table.from_pylist(todo, schema=stages.Caption.reads)).to_pylist()
        for answer in answers:
            of = written[answer["media_id"]]
            before = f"{of[name].text} | " if name in of else ""
            text = answer["caption"] if answer["caption"] is not None else answer["reject_detail"]
            if text is not None:
                of[name] = Written(before + text, answer["reject_reason"])
        counts = sum(answer["reject_reason"] is None and answer["caption"] is not None for answer in answers)
        tokens_in, tokens_out = (sum(answer[key] or 0 for answer in answers) for key in ("tokens_in", "tokens_out"))
        costs = one.resources.costs(tokens_in, tokens_out)
        for_all = "-" if costs is None or not asked else f"{costs / len(asked) * num_all:,.2f}"
        numbers = (str(number) for number in (len(asked), counts, tokens_in, tokens_out))
        made.add_row(name, *numbers, f"{time.monotonic() - start:.1f}", for_all)
    console.print(made)
    places = stages.Places(config.fetched)
    lines = [
        Line(square(row, places), (row["member"] or row["uri"]).rsplit("/", 1)[-1], written[row["media_id"]])
        for row in rows
    ]
    draw_lines(lines, order, out)
    console.print(f"Look at {out}; nothing else was written", highlight=False)


def _is_asked(one: stages.CaptionerConfig, row: dict, written: dict[str, dict[str, Written]]) -> bool:
    has = {name for name, each in written[row["media_id"]].items() if each.reason is None}
    return one.serves in ("all", f"{row['kind']}s") and set(one.reads) <= has and not has & set(one.only_without)


def _read(one: stages.CaptionerConfig, written: dict[str, Written]) -> str | None:
    if not one.reads:
        return None
    return json.dumps({name: written[name].text for name in one.reads}, ensure_ascii=False)
