"""The phases caption and tokenize: kept media go through the stages into shards that are committed on the way."""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.shard_files import Shard
from tokenmill.pipeline.flow.flow import Sink
from tokenmill.pipeline.refresh import edits
from tokenmill.pipeline.refresh.media import WAS_READ, MediaPlan
from tokenmill.pipeline.run.pools import PhaseStages, PlanError, caption_stages, tokenize_stages
from tokenmill.pipeline.run.run import Run, rejected
from tokenmill.storage.cpu import emulation
from tokenmill.tokenizer.vision import weights


def caption(run: Run) -> None:
    """Kept media get a caption."""
    plan = run.plan("caption", MediaPlan)
    _carry_out(run, plan, caption_stages(run.config), ["media_id", "reject_reason"])


def tokenize(run: Run) -> None:
    """Kept, captioned media become rows of `tokens`. Raises PlanError."""
    plan, part = run.plan("tokenize", MediaPlan), run.config.tokenize
    check_clips(part.model, plan.todo["kind"].to_pylist())
    slow = emulation(part.new_dtype, part.resources.num_gpus > 0)
    _carry_out(run, plan, tokenize_stages(run.config), ["media_id", "reject_reason", "frames_trimmed"], slow)
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


def _carry_out(run: Run, plan: MediaPlan, phase: PhaseStages, keys: list[str], note: str | None = None) -> None:
    table, todo = run.table(phase.phase), plan.todo

    def commit(shard: Shard | None, rows: pa.Table) -> None:
        if shard:
            table.commit([shard], [], run.note | {"phase": phase.phase})
        if "frames_trimmed" in rows.schema.names:
            trimmed = run.reports[-1].numbers.get("frames_trimmed", 0)
            run.reports[-1].numbers["frames_trimmed"] = trimmed + (pc.sum(rows["frames_trimmed"]).as_py() or 0)

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
            run.workers.run(phase, todo, "media_id", sink, meter, reject)
        else:
            meter.note("nothing new to do; no medium was read")
    if not plan.is_nothing:
        edits.drop_superseded(table, plan.fingerprints, run.run_id)
