"""The phase tokenize: kept media go through the stages into shards that are committed on the way."""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.plan.tokens import TokenizePlan
from tokenmill.pipeline.refresh import edits
from tokenmill.pipeline.refresh.media import WAS_READ
from tokenmill.pipeline.run.fill import fill
from tokenmill.pipeline.run.pools import PlanError, tokenize_stages
from tokenmill.pipeline.run.run import Run
from tokenmill.storage.cpu import emulation
from tokenmill.tokenizer.vision import weights


def tokenize(run: Run) -> None:
    """Kept, captioned media become rows of `tokens`. Raises PlanError."""
    plan, part = run.plan("tokenize", TokenizePlan), run.config.tokenize
    check_clips(part.model, plan.todo["kind"].to_pylist())
    slow = emulation(part.new_dtype, part.resources.num_gpus > 0)
    table, todo, num_trimmed = run.table("tokenize"), plan.todo, 0

    def count(rows: pa.Table) -> None:
        nonlocal num_trimmed
        num_trimmed += pc.sum(rows["frames_trimmed"]).as_py() or 0

    with run.phase("tokenize", todo.num_rows, "media") as meter:
        meter.report.num_read = todo.num_rows
        if todo.num_rows:
            if slow is not None:
                meter.note(slow)
            table.edit(~WAS_READ, None, run.note | {"phase": "tokenize"})
            known = table.scan(["media_id"], pc.field("fingerprint").isin(plan.fingerprints))["media_id"]
            phase = tokenize_stages(run.config)
            fill(run, meter, phase, todo, plan.fingerprints[0], ["frames_trimmed"], count, known)
            meter.report.numbers["frames_trimmed"] = num_trimmed
        else:
            meter.note("nothing new to do; no medium was read")
    num_synced = 0
    if not plan.is_nothing:
        edits.drop_superseded(table, plan.fingerprints, run.run_id)
        num_synced = edits.sync_captions(run.catalog, run.config.caption.what, run.run_id)
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
