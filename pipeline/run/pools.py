"""The stages of each phase and their pools: do the columns fit together, can the cluster hold the pools at once.

Checked before any worker starts: a missing column is found by name, and pools that could never all start (Ray would
wait for ever, without an error) are refused with the number to change.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tokenmill import stages
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.flow.flow import Group
from tokenmill.pipeline.flow.writer import NUM_CPUS as WRITER_CPUS
from tokenmill.pipeline.phases import Pool
from tokenmill.stages.table.columns import LISTED, MEDIA, TO_CAPTION, TO_TOKENIZE, UNPACK
from tokenmill.storage.errors import UserError

TO_CURATE = pa.schema([*LISTED, *UNPACK])


class PlanError(UserError):
    """A plan cannot be carried out; the message names the stage or the pool and what to change."""


@dataclass(frozen=True)
class Machines:
    """What pools may take."""

    cpus: float
    gpus: float
    is_cluster: bool = False  # machines may come and go while a phase is at work
    are_awaited: bool = False  # an autoscaler adds some where pools lack them


@dataclass(frozen=True)
class PhaseStages:
    """The stages of one phase with their pools."""

    phase: str
    start: pa.Schema
    pools: tuple[tuple[tuple[stages.StageSpec, ...], Pool], ...]
    captioner: str = ""

    @property
    def name(self) -> str:
        """As it is told."""
        return f"{self.phase} {self.captioner}".rstrip()

    @property
    def stages(self) -> list[stages.StageSpec]:
        """All stages in order."""
        return [stage for stages, _ in self.pools for stage in stages]


def curate_stages(config: RunConfig) -> PhaseStages:
    """read, score, split, the scorers that run a model, decide: one pool, one decode per medium; on GPUs the models
    have a pool of their own.
    """
    part = config.curate
    scorers = part.scorers
    lazy = stages.Lazy(part.decide.image_rules, part.decide.video_rules, scorers, part.all_scores)
    views_px = None if part.clip.model is None else part.clip.view_px
    decode: tuple[stages.StageSpec, ...] = (
        (stages.Read, (part.read, config.fetched, part.fetch, part.fetch_pace)),
        (stages.ScoreImages, (part.score, lazy, part.text, views_px)),
        (stages.SplitVideos, (part.split, lazy, part.text, views_px)),
    )
    models: tuple[stages.StageSpec, ...] = (
        (stages.ScoreClip, (part.clip, lazy.name("clip"))),
        (stages.Decide, (part.decide, scorers)),
    )
    if part.clip.model is None or part.clip_resources.num_gpus == 0:
        return PhaseStages("curate", TO_CURATE, ((decode + models, part.resources),))
    return PhaseStages("curate", TO_CURATE, ((decode, part.resources), (models, part.clip_resources)))


def caption_stages(config: RunConfig, name: str = "source", answers: str = "", run_id: str = "") -> PhaseStages:
    """caption, by one captioner; `answers` is where they are kept until they are committed."""
    part, pool = config.caption, config.caption.pool(name)
    made = (name, part.all[name], config.fetched, 1.0 / (pool.workers or 1), answers, run_id)
    return PhaseStages("caption", TO_CAPTION, ((((stages.Caption, made),), pool),), "" if name == "source" else name)


def likeness_stages(config: RunConfig, name: str, scorer: str) -> PhaseStages:
    """Captions of one captioner and their likeness."""
    of_rules: stages.StageSpec = (stages.JudgeCaptions, (config.caption.all[name].verdicts,))
    score: stages.StageSpec = (stages.ScoreLikeness, (config.curate.clip, scorer))
    start = pa.schema([*stages.Caption.writes, MEDIA.field("media_id"), MEDIA.field("embedding")])
    return PhaseStages("caption", start, (((score, of_rules), config.curate.clip_resources),), name)


def tokenize_stages(config: RunConfig) -> PhaseStages:
    """Load frames, tokenize: one pool on CPUs; on GPUs the frames come from a CPU pool of their own."""
    part = config.tokenize
    load: stages.StageSpec = (stages.LoadFrames, (part.frames, part.model, config.fetched))
    encode: stages.StageSpec = (stages.Tokenize, (part.what, part.resources.batch_px, part.resources.compile))
    if part.resources.num_gpus == 0:
        return PhaseStages("tokenize", TO_TOKENIZE, (((load, encode), part.resources),))
    return PhaseStages("tokenize", TO_TOKENIZE, (((load,), part.frames_resources), ((encode,), part.resources)))


STAGES = {"curate": curate_stages, "caption": caption_stages, "tokenize": tokenize_stages}  # by phase


def all_stages(phase: str, config: RunConfig) -> list[PhaseStages]:
    """The stages of a phase; of caption for each captioner that it needs."""
    if phase == "caption":
        return [caption_stages(config, name) for name in config.caption.order or ["source"]]
    return [STAGES[phase](config)]


def check_columns(phase: PhaseStages, result: pa.Schema) -> None:
    """Every stage finds the columns that it reads, and the end has those of `result`. Raises PlanError."""
    columns: dict[str, Any] = {field.name: field.type for field in phase.start}
    for stage, _ in phase.stages:
        for field in stage.reads:
            if field.name not in columns:
                raise PlanError(
                    f"{phase.phase}: {stage.__name__} reads column {field.name!r}, which no stage before it writes"
                )
            if columns[field.name] != field.type:
                raise PlanError(
                    f"{phase.phase}: {stage.__name__} reads {field.name!r} as {field.type}, "
                    f"but it is {columns[field.name]}"
                )
        columns |= {field.name: field.type for field in stage.writes}
        for name in stage.drops:
            columns.pop(name, None)
    for field in result:
        if field.name not in columns and field.name not in ("fingerprint", "run_id"):
            raise PlanError(f"{phase.phase}: no stage writes column {field.name!r} of its table")


def groups(phase: PhaseStages, have: Machines) -> list[Group]:
    """Pools with the number of workers that they begin with. Raises PlanError when they do not fit, and no machine is
    awaited.
    """
    cpus, gpus = have.cpus, have.gpus
    made = []
    share = (cpus - WRITER_CPUS) / len(phase.pools)
    for members, pool in phase.pools:
        room = share // pool.num_cpus
        fits = max(1, int(min(room, gpus // pool.num_gpus) if pool.num_gpus else room))
        workers = pool.workers or fits
        made.append(Group(members, pool, min(workers, fits) if have.are_awaited else workers, have.is_cluster))
    if have.are_awaited:
        return made
    need_cpus, need_gpus = _needs(made)
    if need_cpus > cpus + 1e-6:
        raise PlanError(
            f"{phase.phase}: its pools need {need_cpus:g} CPUs at once, the cluster has {cpus:g}; "
            f"lower {phase.phase}.resources.workers or .num_cpus"
        )
    if need_gpus > gpus + 1e-6:
        raise PlanError(
            f"{phase.phase}: its pools need {need_gpus:g} GPUs, the cluster has {gpus:g}; "
            f"set {phase.phase}.resources.num_gpus=0 to run on CPUs"
        )
    return made


def lack(made: list[Group], have: Machines) -> str | None:
    """What pools wait for before they can begin, in words; null: they can."""
    cpus, gpus = _needs(made)
    if cpus <= have.cpus + 1e-6 and gpus <= have.gpus + 1e-6:
        return None
    wanted = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
    there = f"{have.cpus:g}" + (f" and {have.gpus:g}" if gpus else "")
    return f"waits for machines: it begins with {wanted}, the cluster has {there}"


def _needs(made: list[Group]) -> tuple[float, float]:
    """CPUs and GPUs of all pools at once, and the writer."""
    cpus = sum(group.workers * group.pool.num_cpus for group in made) + WRITER_CPUS
    return cpus, sum(group.workers * group.pool.num_gpus for group in made)
