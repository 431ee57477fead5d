"""The plan: which stages run, whether their columns fit together, whether the cluster can hold their pools at once.

Checked before any worker starts: a missing column is found by name, and pools that could never all start (Ray would
wait for ever, without an error) are refused with the number to change.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tokenmill.pipeline.config import Pool, RunConfig
from tokenmill.pipeline.flow.flow import Group
from tokenmill.pipeline.flow.writer import NUM_CPUS as WRITER_CPUS
from tokenmill.stages import (
    Caption,
    Decide,
    Lazy,
    LoadFrames,
    Read,
    ScoreClip,
    ScoreImages,
    SplitVideos,
    StageSpec,
    Tokenize,
)
from tokenmill.stages.table.columns import LISTED, TO_CAPTION, TO_TOKENIZE, UNPACK
from tokenmill.storage.errors import UserError
from tokenmill.tokenizer.vision import weights

TO_CURATE = pa.schema([*LISTED, *UNPACK])


class PlanError(UserError):
    """The plan cannot run; the message names the stage or the pool and what to change."""


@dataclass(frozen=True)
class PhasePlan:
    """The stages of one phase with their pools."""

    phase: str
    start: pa.Schema
    pools: tuple[tuple[tuple[StageSpec, ...], Pool], ...]

    @property
    def stages(self) -> list[StageSpec]:
        """All stages in order."""
        return [stage for stages, _ in self.pools for stage in stages]


def curate_plan(config: RunConfig) -> PhasePlan:
    """read, score, split, the scorers that run a model, decide: one pool, one decode per medium; on GPUs the models
    have a pool of their own.
    """
    part = config.curate
    scorers = part.scorers
    lazy = Lazy(part.decide.image_rules, part.decide.video_rules, scorers, part.all_scores)
    views_px = None if part.clip.model is None else part.clip.view_px
    decode: tuple[StageSpec, ...] = (
        (Read, (part.read, config.fetched, part.fetch, part.fetch_pace)),
        (ScoreImages, (part.score, lazy, part.text, views_px)),
        (SplitVideos, (part.split, lazy, part.text, views_px)),
    )
    models: tuple[StageSpec, ...] = ((ScoreClip, (part.clip, lazy.name("clip"))), (Decide, (part.decide, scorers)))
    if part.clip.model is None or part.clip_resources.num_gpus == 0:
        return PhasePlan("curate", TO_CURATE, ((decode + models, part.resources),))
    return PhasePlan("curate", TO_CURATE, ((decode, part.resources), (models, part.clip_resources)))


def caption_plan(config: RunConfig) -> PhasePlan:
    """caption."""
    part = config.caption
    return PhasePlan("caption", TO_CAPTION, ((((Caption, (part.what,)),), part.resources),))


def tokenize_plan(config: RunConfig) -> PhasePlan:
    """Load frames, tokenize: one pool on CPUs; on GPUs the frames come from a CPU pool of their own."""
    part = config.tokenize
    load: StageSpec = (LoadFrames, (part.frames, part.model, config.fetched))
    encode: StageSpec = (Tokenize, (part.what, part.resources.batch_px, part.resources.compile))
    if part.resources.num_gpus == 0:
        return PhasePlan("tokenize", TO_TOKENIZE, (((load, encode), part.resources),))
    return PhasePlan("tokenize", TO_TOKENIZE, (((load,), part.frames_resources), ((encode,), part.resources)))


def check_clips(config: RunConfig, kinds: Iterable[str]) -> None:
    """The tokenizer codes every kind of medium that waits for it. Raises PlanError."""
    model, num_clips = config.tokenize.model, sum(kind == "video" for kind in kinds)
    if num_clips and not weights.codes_clips(model):
        raise PlanError(
            f"tokenize: {num_clips} kept clips, and {model} codes images only; set tokenize.model to one that "
            f"codes clips ({weights.CLIP_TOKENIZERS}), or keep no clip: add `no_clips: duration_s < 0` to "
            "curate.decide.video_rules"
        )


def check_columns(plan: PhasePlan, result: pa.Schema) -> None:
    """Every stage finds the columns that it reads, and the end has those of `result`. Raises PlanError."""
    columns: dict[str, Any] = {field.name: field.type for field in plan.start}
    for stage, _ in plan.stages:
        for field in stage.reads:
            if field.name not in columns:
                raise PlanError(
                    f"{plan.phase}: {stage.__name__} reads column {field.name!r}, which no stage before it writes"
                )
            if columns[field.name] != field.type:
                raise PlanError(
                    f"{plan.phase}: {stage.__name__} reads {field.name!r} as {field.type}, "
                    f"but it is {columns[field.name]}"
                )
        columns |= {field.name: field.type for field in stage.writes}
        for name in stage.drops:
            columns.pop(name, None)
    for field in result:
        if field.name not in columns and field.name not in ("fingerprint", "run_id"):
            raise PlanError(f"{plan.phase}: no stage writes column {field.name!r} of its table")


def groups(plan: PhasePlan, have: dict[str, float]) -> list[Group]:
    """Pools with their number of workers on a machine or cluster of these CPUs and GPUs. Raises PlanError when they do
    not fit.
    """
    cpus, gpus = have.get("CPU", 0.0), have.get("GPU", 0.0)
    made = []
    share = (cpus - WRITER_CPUS) / len(plan.pools)
    for stages, pool in plan.pools:
        workers = pool.workers
        if workers is None:
            fits = share // pool.num_cpus
            workers = max(1, int(min(fits, gpus // pool.num_gpus) if pool.num_gpus else fits))
        made.append(Group(stages, pool, workers))
    need_cpus = sum(group.workers * group.pool.num_cpus for group in made) + WRITER_CPUS
    need_gpus = sum(group.workers * group.pool.num_gpus for group in made)
    if need_cpus > cpus + 1e-6:
        raise PlanError(
            f"{plan.phase}: its pools need {need_cpus:g} CPUs at once, the cluster has {cpus:g}; "
            f"lower {plan.phase}.resources.workers or .num_cpus"
        )
    if need_gpus > gpus + 1e-6:
        raise PlanError(
            f"{plan.phase}: its pools need {need_gpus:g} GPUs, the cluster has {gpus:g}; "
            f"set {plan.phase}.resources.num_gpus=0 to run on CPUs"
        )
    return made
