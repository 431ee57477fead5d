"""The phase caption: captioners in their order, each over the media that lack a row of it.

A captioner that stops leaves its answers, and says what to do; those that do not wait for it go on.
"""

import time
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill import stages
from tokenmill.pipeline.plan import caption_verdicts, captioners, captions, likeness
from tokenmill.pipeline.refresh import edits, media
from tokenmill.pipeline.reports.terminal import Meter
from tokenmill.pipeline.run.fill import fill
from tokenmill.pipeline.run.pools import caption_stages, likeness_stages
from tokenmill.pipeline.run.run import Run
from tokenmill.pipeline.run.served import check_servers, served
from tokenmill.storage.failures import AGAIN

_NUMBERS = ("tokens_in", "tokens_out", "seconds")


def check_captioners(run: Run) -> None:
    """Where captions are to be written, all that can be known before is in order. Raises CaptionError, PromptError."""
    plan, part = run.foreseen.get("caption"), run.config.caption
    if isinstance(plan, captions.CaptionPlan) and not plan.is_nothing:
        for name in part.order:
            stages.check_reachable(name, part.all[name])
            check_servers(run, name)


def caption(run: Run) -> None:
    """Kept media get captions. Raises CaptionError where a captioner stopped, once all answers are committed."""
    plan, part = run.plan("caption", captions.CaptionPlan), run.config.caption
    stopped, done = dict[str, list[str]](), list[captioners.CaptionerPlan]()
    with run.phase("caption", plan.todo.num_rows, "media") as meter:
        caption_verdicts.rejudge(run.catalog, plan.rejudged, run.config, run.run_id)
        for each in plan.captioners:
            one = part.all[each.name]
            if {*one.reads, *one.only_without} & stopped.keys():
                continue
            mine = each
            if not each.is_known:
                mine = captioners.plan_captioner(run.config, run.catalog, each.name)
                meter.total += mine.todo.num_rows
            done.append(mine)
            why = _carry_out(run, mine, meter)
            if why:
                stopped[each.name] = why
        meter.report.num_read = sum(each.todo.num_rows for each in done)
        if not meter.report.num_read:
            meter.note("nothing new to do; no medium was read")
    run.plans["caption"] = replace(plan, captioners=done)
    if not stopped:
        stages.clear_all_answers(run.catalog.root)  # they are committed, or of captioners before
    else:
        said = "; ".join(f"{name} stopped: {why}" for name, (why, *_) in stopped.items())
        more = [line for _, *lines in stopped.values() for line in lines]
        raise stages.CaptionError(
            "\n".join([f"caption: {said}. {meter.report.num_seen} results are kept; {AGAIN}", *more])
        )


def _carry_out(run: Run, plan: captioners.CaptionerPlan, meter: Meter) -> list[str]:
    """Let one captioner do what is planned; returns why it stopped, and what is down for good, if it did."""
    table, part, report = run.table("caption"), run.config.caption, meter.report
    is_model = bool(part.all[plan.name].model)
    note = run.note | {"phase": "caption", "captioner": plan.name}
    mine = pc.field("captioner") == plan.name
    if len(plan.obsolete):
        table.edit(mine & pc.field("media_id").isin(plan.obsolete), None, note)
    numbers, stopped, num_unasked = dict.fromkeys((*_NUMBERS, "captions"), 0.0), None, 0

    answers = stages.answers_of(run.catalog.root, plan.fingerprints[0])

    def count(rows: pa.Table) -> None:
        nonlocal stopped, num_unasked
        for name in _NUMBERS:
            numbers[name] += pc.sum(rows[name]).as_py() or 0
        unasked = rows.filter(pc.fill_null(pc.equal(rows["reject_reason"], stages.KNOWN), False))
        if is_model and not unasked.num_rows:
            stages.clear_answers(answers, rows["media_id"].to_pylist())
        if unasked.num_rows:
            stopped, num_unasked = unasked["reject_detail"][0].as_py(), num_unasked + unasked.num_rows
        numbers["captions"] += rows.num_rows - unasked.num_rows

    started, is_down = time.monotonic(), list[str]()
    if plan.todo.num_rows:
        table.edit(~media.WAS_READ & mine, None, note)
        with served(run, plan.name, plan.todo, answers) as (config, down):
            fill(
                run,
                meter,
                caption_stages(config, plan.name, answers, run.run_id),
                plan.todo,
                plan.fingerprints[0],
                ["span", "reject_detail", *_NUMBERS],
                count,
                commit_every_s=part.resources.commit_every_s if is_model else None,
                captioner=plan.name,
            )
            is_down = down()
        if is_model:
            spent = report.numbers.setdefault("captioners", {})
            numbers["elapsed_s"] = time.monotonic() - started
            spent[plan.name] = {name: round(value, 1) for name, value in numbers.items()}
        report.num_copies -= num_unasked  # they are no copies of anything
    edits.drop_superseded(table, plan.fingerprints, run.run_id, plan.name)
    if part.all[plan.name].reads_likeness:
        _score_likeness(run, plan, meter)
    return [] if stopped is None else [stopped, *is_down]


def _score_likeness(run: Run, plan: captioners.CaptionerPlan, meter: Meter) -> None:
    """Rows with a likeness and its verdict in place of those without. A run killed in between leaves both: the newer
    one counts, and the next run removes the other.
    """
    by = likeness.scorer(run.config)
    assert by is not None
    todo = likeness.to_score(run.config, run.catalog, plan.name, plan.fingerprints, likeness.TO_SCORE.names)
    if todo.num_rows:
        phase = likeness_stages(run.config, plan.name, by)
        meter.total += todo.num_rows
        fill(run, meter, phase, todo, plan.fingerprints[0], ["span"], lambda _: None, captioner=plan.name)
    likeness.drop_unscored(run.config, run.catalog, plan.name, run.note)
