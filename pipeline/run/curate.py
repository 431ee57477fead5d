"""The phase curate: files of the sources become rows of `media`, and the tables agree with the sources again."""

import pyarrow as pa

from tokenmill.pipeline.plan.files import CuratePlan
from tokenmill.pipeline.refresh import edits, fingerprints, upkeep, verdicts
from tokenmill.pipeline.reports.status import reasons_with_kept
from tokenmill.pipeline.run.read_files import MalformedLines, read_files
from tokenmill.pipeline.run.run import Run
from tokenmill.stages.select.duplicates import Verdicts


def curate(run: Run) -> None:
    """Carry out the plan. Raises PlanError, CatalogError."""
    catalog, plan = run.catalog, run.plan("curate", CuratePlan)
    before = reasons_with_kept(catalog) if len(plan.judged) else {}
    rejudge(run, plan.judged)
    after = reasons_with_kept(catalog) if before else {}
    edits.reopen(catalog, plan.reopened, run.run_id)
    changes, num_todo, malformed = plan.changes, plan.todo.num_rows, MalformedLines(run)
    with run.phase("curate", num_todo, "files") as meter:
        report = meter.report
        report.num_read = num_todo
        report.numbers = {
            "num_listed": changes.num_listed,
            "num_new": changes.num_new,
            "num_changed": len(changes.changed),
            "num_remeasured": changes.num_remeasured,
            "num_recaptioned": changes.recaptioned.num_rows,
            "num_gone": len(changes.gone),
            "num_unseen": len(run.listing.unseen),
            "num_unchanged": changes.num_listed - num_todo,
            "num_redecided": len(plan.judged),
            "num_reopened": len(plan.reopened),
            "ignored": dict(run.listing.ignored),
        }
        if num_todo:
            read_files(run, plan.todo, meter, malformed)
        else:
            meter.note(f"all {changes.num_listed} files are known and unchanged; none was read")
        if changed := [name for name in {**before, **after} if before.get(name, 0) != after.get(name, 0)]:
            said = ", ".join(f"{name} {before.get(name, 0)} -> {after.get(name, 0)}" for name in changed)
            meter.note(f"rules changed, judged on stored scores: {said}")
        malformed.tell(meter)
        edits.mark_gone(catalog, changes.gone, run.run_id)
        edits.recaption(catalog, plan.recaptioned, run.run_id)
        if not plan.is_nothing:
            report.numbers["reconciled"] = settle(run, plan.duplicates)


def rejudge(run: Run, ids: pa.Array) -> None:
    """Write the verdicts of the rules on the stored scores of these media."""
    verdicts.redecide(run.catalog, ids, run.config, run.run_id)


def settle(run: Run, duplicates: Verdicts | None) -> dict[str, int]:
    """Make the tables agree with the sources as recorded; `duplicates`, where they are known. Returns the rows moved
    and removed, by table.
    """
    config = run.config
    return upkeep.reconcile(
        run.catalog,
        fingerprints.of_curate(config),
        config.caption.what,
        run.run_id,
        duplicates or config.curate.duplicates,
        verdicts.by_rules(config),
    )
