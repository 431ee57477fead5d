"""The phase tokenize, and what it shares with caption: kept media go through the stages into shards that are committed
on the way.
"""

from collections.abc import Callable, Iterable

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.shard_files import Shard
from tokenmill.pipeline.flow.flow import Sink
from tokenmill.pipeline.refresh import edits
from tokenmill.pipeline.refresh.media import WAS_READ, MediaPlan
from tokenmill.pipeline.run.pools import PhaseStages, PlanError, tokenize_stages
from tokenmill.pipeline.run.run import Run, rejected
from tokenmill.storage.cpu import emulation
from tokenmill.tokenizer.vision import weights


def tokenize(run: Run) -> None:
    """Kept, captioned media become rows of `tokens`. Raises PlanError."""
    plan, part = run.plan("tokenize", MediaPlan), run.config.tokenize
    check_clips(part.model, plan.todo["kind"].to_pylist())
    slow = emulation(part.new_dtype, part.resources.num_gpus > 0)
    num_trimmed = 0

    def count(rows: pa.Table) -> None:
        nonlocal num_trimmed
        num_trimmed += pc.sum(rows["frames_trimmed"]).as_py() or 0

    carry_out(run, plan, tokenize_stages(run.config), ("frames_trimmed",), count, slow)
    if plan.todo.num_rows:
        run.reports[-1].numbers["frames_trimmed"] = num_trimmed
    num_synced = 0 if plan.is_nothing else edits.sync_captions(run.catalog, run.run_id)
    run.reports[-1].numbers |= {"dtype": part.new_dtype, "captions_synced": num_synced}


def check_clips(model: str, kinds: Iterable[str]) -> None:
    """The tokenizer codes every kind of medium that waits for it. Raises PlanError."""
    num_clips = sum(kind == "video" for kind in kinds)
    if num_clips and not weights.codes_clips(model):
        raise PlanError(
            f"tokenize: {num_clips} kept clips, and {model} codes images only; set tokenize.model to one that "
            f"codes clips ({weights.CLIP_TOKENIZERS}), or keep no clip: add `no_clips: duration_s < 0` to "
            "curate.decide.video_rules"
        )


def carry_out(
    run: Run,
    plan: MediaPlan,
    phase: PhaseStages,
    counted: tuple[str, ...],
    count: Callable[[pa.Table], None],
    note: str | None = None,
    commit_every_s: float | None = None,
) -> None:
    """Send the media of the plan through the stages; `count` gets the columns `counted` of what is written."""
    keys = ["media_id", "reject_reason", *counted]
    table, todo = run.table(phase.phase), plan.todo

    def commit(shard: Shard | None, rows: pa.Table) -> None:
        if shard:
            table.commit([shard], [], run.note | {"phase": phase.phase})
        count(rows)

    def reject(row: pa.Table, reason: str, _detail: str) -> pa.Table:
        values = {name: row[name][0].as_py() for name in row.schema.names}
        return rejected(table.schema, values | {"reject_reason": reason, "captioner": "none"})

    with run.phase(phase.phase, todo.num_rows, "media") as meter:
        meter.report.num_read = todo.num_rows
        if todo.num_rows:
            if note is not None:
                meter.note(note)
            table.edit(~WAS_READ, None, run.note | {"phase": phase.phase})
            known = table.scan(["media_id"], pc.field("fingerprint").isin(plan.fingerprints))["media_id"]
            constants = run.note | {"fingerprint": plan.fingerprints[0]}
            sink = Sink(run.catalog.root, table.name, constants, keys, commit, known)
            run.workers.run(phase, todo, "media_id", sink, meter, reject, commit_every_s=commit_every_s)
        else:
            meter.note("nothing new to do; no medium was read")
    if not plan.is_nothing:
        edits.drop_superseded(table, plan.fingerprints, run.run_id)
