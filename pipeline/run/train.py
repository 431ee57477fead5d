"""The phase train: one transformer over the shards of one pinned version of `tokens`, in one stage or several."""

from collections.abc import Iterator
from typing import Any

from tokenmill import storage
from tokenmill.pipeline.plan.training import TrainPlan, train_jobs
from tokenmill.pipeline.run.given import give
from tokenmill.pipeline.run.run import Run
from tokenmill.storage.cpu import emulation
from tokenmill.storage.errors import TrainingError
from tokenmill.training.job import DONE, TrainJob, TrainResult
from tokenmill.training.tracking.curves import draw_curves
from tokenmill.training.tracking.trackers import check_trackers

_TOLD_WAIT = 0.05
_PLURAL = {"image": "images", "video": "clips", "dialogue": "dialogues", "text": "texts"}


def said(losses: dict[str, float], speeds: dict[str, float]) -> str:
    """How a step went, for a person; MFU where the peak of the GPUs is known, and waiting for data where it is much."""
    shown = [f"{name} {value:.3f}" for name, value in losses.items() if name != "structure"]
    mfu = [f"MFU {speeds['mfu']:.1%}"] if "mfu" in speeds else []
    waits = [f"waits for data {wait:.0%}"] if (wait := speeds.get("data_wait", 0.0)) > _TOLD_WAIT else []
    return "  ".join([*shown, f"{speeds['tokens_per_s']:,.0f} tokens/s", *mfu, *waits])


def train(run: Run) -> None:
    """One transformer over the shards of one pinned version of `tokens`, from the table or an export of it, stage by
    stage; each resumed from its checkpoint when there is one.
    """
    jobs = run.plan("train", TrainPlan).jobs
    jobs = train_jobs(run.config, run.catalog) if jobs is None else jobs
    waiting = [job for job in jobs if not storage.exists(job.at(DONE))]
    for job in waiting:  # what does not fit stops all before it starts
        check_trackers(job.monitor.track)
        if job.config.model.lora is not None:
            job.config.model.lora.check_installed("train.model.lora")
        if job.shard_uris:
            give(run.catalog, job)
    if waiting:
        run.workers.start_ray()
    for job in jobs:
        _train(run, job)


def _train(run: Run, job: TrainJob) -> None:
    from tokenmill.training.run.loop import fit  # imports Ray

    part = run.config.train.stage(job.stage)
    told = "" if job.stage is None else f"{job.stage}: "
    is_done = storage.exists(job.at(DONE))

    def begin(summary: dict[str, Any]) -> None:
        meter.total = summary["num_steps"]
        if words := _left_out(summary["excluded"], summary["num_documents"]):
            meter.note(f"{told}{words}")
        if part.resources.use_gpu or part.resources.num_workers > 1:
            meter.note(f"{told}{summary['memory']}")
        if words := _held_out(summary.get("held_out", {}), summary["num_documents"]):
            meter.note(f"{told}{words}")

    def show(step: int, total: int, losses: dict[str, float], speeds: dict[str, float]) -> None:
        meter.at(step, told + said(losses, speeds), losses | speeds)

    with run.phase("train", 0, "steps") as meter:
        if not job.shard_uris:
            raise TrainingError(
                f"{part.shards or run.catalog.tokens.uri}: version {job.tokens_version} holds no rows to train on; "
                "`tokenmill status` says why"
            )
        if not is_done and (slow := emulation(job.config.dtype, part.resources.use_gpu)):
            meter.note(slow)
        result = fit(job, part.resources, show, begin, lambda words: meter.note(f"{told}{words}"))
        draw_curves(job.run_uri, job.at("loss.png"))
        meter.report.num_read = 0 if is_done else result.num_documents
        meter.report.numbers = {
            "run_uri": job.run_uri,
            "stage": job.stage,
            "tokens_version": job.tokens_version,
            "plan": result.plan,
            "losses": result.losses,
            "validation": result.validation,
            "dtype": result.dtype,
        }
        for words in _result(result, is_done, part.data.context_tokens):
            meter.note(f"{told}{words}")


def _result(result: TrainResult, is_done: bool, context_tokens: int) -> Iterator[str]:
    losses = ", ".join(f"{name} {value:.3f}" for name, value in result.losses.items())
    state = "already trained" if is_done else f"trained in {result.num_steps} steps"
    yield f"{state} on tokens version {result.tokens_version}: {result.num_documents} documents; {losses}"
    if result.validation:
        losses = ", ".join(f"{name} {value:.3f}" for name, value in result.validation.items() if name != "structure")
        yield f"held out, {_counts(result.held_out)}: {losses}"
    if result.num_texts:
        yield (
            f"text: {result.num_texts} documents in {result.num_text_pieces} pieces of at most {context_tokens} "
            f"tokens, {result.num_text_tokens / result.num_tokens:.1%} of the tokens trained on"
        )


def _left_out(excluded: dict[str, int], num_used: int) -> str:
    """What training does not see, and what share of all rows that is."""
    total = num_used + sum(excluded.values())
    shown = [f"{reason} {count} ({count / total:.1%})" for reason, count in excluded.items() if count]
    return f"not used: {', '.join(shown)}" if shown else ""


def _held_out(held_out: dict[str, int], num_trained: int) -> str:
    """What is kept for validation."""
    return f"held out for validation: {_counts(held_out)}; trained on: {num_trained} documents" if held_out else ""


def _counts(held_out: dict[str, int]) -> str:
    return ", ".join(f"{number} {_PLURAL[sort]}" for sort, number in held_out.items())
