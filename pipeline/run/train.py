"""The phase train: one transformer over the shards of one pinned version of `tokens`."""

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import CatalogError
from tokenmill.pipeline.plan.training import TrainPlan, train_job
from tokenmill.pipeline.run.run import Run
from tokenmill.storage.cpu import emulation
from tokenmill.training.job import DONE
from tokenmill.training.run.curves import draw_curves


def said(losses: dict[str, float], speeds: dict[str, float]) -> str:
    """How a step went, for a person; MFU where the peak of the GPUs is known."""
    shown = [f"{name} {value:.3f}" for name, value in losses.items() if name != "structure"]
    mfu = [f"MFU {speeds['mfu']:.1%}"] if "mfu" in speeds else []
    return "  ".join([*shown, f"{speeds['tokens_per_s']:,.0f} tokens/s", *mfu])


def train(run: Run) -> None:
    """One transformer over the shards of one pinned version of `tokens`, from the table or an export of it; resumed
    from its checkpoint when there is one.
    """
    from tokenmill.training.run.loop import fit  # imports Ray

    part, tokens = run.config.train, run.catalog.tokens
    job = run.plan("train", TrainPlan).job or train_job(run.config, run.catalog)
    version, uri = job.tokens_version, job.run_uri
    is_done = storage.exists(storage.join(uri, DONE))
    with run.phase("train", 0, "steps") as meter:

        def show(step: int, total: int, losses: dict[str, float], speeds: dict[str, float]) -> None:
            meter.total = total
            meter.at(step, said(losses, speeds), losses | speeds)

        if not job.shard_uris:
            raise CatalogError(
                f"{part.shards or tokens.uri}: version {version} holds no rows to train on; `tokenmill status` says why"
            )
        if not is_done and (slow := emulation(job.config.dtype, part.resources.use_gpu)):
            meter.note(slow)
        if not is_done:
            run.workers.start_ray()
        result = fit(job, part.resources, show)
        draw_curves(uri, storage.join(uri, "loss.png"))
        report = meter.report
        report.num_read = 0 if is_done else result.num_documents
        report.numbers = {"run_uri": uri, "tokens_version": version, "plan": result.plan, "losses": result.losses}
        report.numbers["dtype"] = result.dtype
        losses = ", ".join(f"{name} {value:.3f}" for name, value in result.losses.items())
        state = "already trained" if is_done else f"trained in {result.num_steps} steps"
        meter.note(f"{state} on tokens version {version}: {result.num_documents} documents; {losses}")
        if result.num_texts:
            meter.note(
                f"text: {result.num_texts} documents in {result.num_text_pieces} pieces of at most "
                f"{part.data.context_tokens} tokens, {result.num_text_tokens / result.num_tokens:.1%} of the "
                "tokens trained on"
            )
        if unused := {reason: count for reason, count in result.excluded.items() if count}:
            meter.note("not used: " + ", ".join(f"{reason} {count}" for reason, count in unused.items()))
