"""The phase caption: kept media get a caption; a captioner that stops leaves its answers, and says what to do."""

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.refresh.media import MediaPlan
from tokenmill.pipeline.run.media_phases import carry_out
from tokenmill.pipeline.run.pools import caption_stages
from tokenmill.pipeline.run.run import Run
from tokenmill.pipeline.run.served import check_servers, served
from tokenmill.stages import CaptionError, check_reachable
from tokenmill.stages.caption.journal import clear, clear_all, place
from tokenmill.stages.table.columns import KNOWN
from tokenmill.storage.failures import AGAIN

_TOKENS = ("tokens_in", "tokens_out")


def check_captioner(run: Run) -> None:
    """Where captions are to be written, all that can be known before is in order. Raises CaptionError, PromptError."""
    plan, part = run.foreseen.get("caption"), run.config.caption
    if isinstance(plan, MediaPlan) and not plan.is_nothing and part.active is not None:
        check_reachable(part.captioner, part.active)
        check_servers(run)


def caption(run: Run) -> None:
    """Kept media get a caption. Raises CaptionError where the captioner stopped, once its answers are committed."""
    plan, part = run.plan("caption", MediaPlan), run.config.caption
    numbers, stopped, num_unasked = dict.fromkeys(_TOKENS, 0), None, 0
    answers = place(run.catalog.root, plan.fingerprints[0])

    def count(rows: pa.Table) -> None:
        nonlocal stopped, num_unasked
        if part.active is not None:
            clear(answers, rows["media_id"].to_pylist())
        for name in _TOKENS:
            numbers[name] += pc.sum(rows[name]).as_py() or 0
        unasked = rows.filter(pc.fill_null(pc.equal(rows["reject_reason"], KNOWN), False))
        if unasked.num_rows:
            stopped, num_unasked = unasked["reject_detail"][0].as_py(), num_unasked + unasked.num_rows

    every_s = None if part.active is None else part.resources.commit_every_s
    with served(run, plan.todo) as (config, down):
        phase = caption_stages(config, answers, run.run_id)
        carry_out(run, plan, phase, ("reject_detail", *_TOKENS), count, commit_every_s=every_s)
        told = down()
    clear_all(run.catalog.root)  # they are committed, or of a captioner before
    report = run.reports[-1]
    if part.active is not None and plan.todo.num_rows:
        report.numbers |= numbers
    report.num_copies -= num_unasked  # they are no copies of anything
    if stopped is not None:
        told = [f"caption: {part.captioner} stopped: {stopped}. {report.num_seen} results are kept; {AGAIN}", *told]
        raise CaptionError("\n".join(told))
