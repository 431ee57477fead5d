"""The phase curate: files of the sources become rows of `media`, and the tables agree with the sources again."""

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.forgotten import Forgotten
from tokenmill.pipeline.catalog.ledger import KEYS, Ledger
from tokenmill.pipeline.catalog.shard_files import Shard
from tokenmill.pipeline.flow.flow import Sink
from tokenmill.pipeline.refresh import edits, fingerprints, sources, upkeep, verdicts
from tokenmill.pipeline.refresh.files import CuratePlan
from tokenmill.pipeline.reports.terminal import Meter
from tokenmill.pipeline.run.pools import curate_stages
from tokenmill.pipeline.run.run import Run, rejected

_NAMED = 5  # broken lines


def curate(run: Run) -> None:
    """Carry out the plan. Raises PlanError, CatalogError."""
    config, catalog, plan = run.config, run.catalog, run.plan("curate", CuratePlan)
    verdicts.redecide(catalog, plan.judged, config, run.run_id)
    edits.reopen(catalog, plan.reopened, run.run_id)
    changes, num_todo = plan.changes, plan.todo.num_rows
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
            "num_broken_lines": len(run.listing.broken_lines),
            "num_unchanged": changes.num_listed - num_todo,
            "num_redecided": len(plan.judged),
            "num_reopened": len(plan.reopened),
            "ignored": dict(run.listing.ignored),
        }
        if num_todo:
            _read(run, plan, meter)
        else:
            meter.note(f"all {changes.num_listed} files are known and unchanged; none was read")
        if broken := run.listing.broken_lines:
            named = ", ".join(broken[:_NAMED]) + (", ..." if len(broken) > _NAMED else "")
            meter.note(f"{len(broken)} lines are no caption and were passed over: {named}")
        edits.mark_gone(catalog, changes.gone, run.run_id)
        edits.recaption(catalog, plan.recaptioned, run.run_id)
        if not plan.is_nothing:
            uses_source = config.caption.what.uses_source
            duplicates = plan.duplicates or config.curate.duplicates
            fingerprint = fingerprints.of_curate(config)
            report.numbers["reconciled"] = upkeep.reconcile(catalog, fingerprint, uses_source, run.run_id, duplicates)


def _read(run: Run, plan: CuratePlan, meter: Meter) -> None:
    """Send the files of the plan through the stages."""
    config, catalog, schema = run.config, run.catalog, run.catalog.media.schema
    forgotten, fingerprint = Forgotten.load(catalog.root), fingerprints.of_curate(config)
    todo = plan.todo.append_column("source_caption", sources.with_captions(plan.todo)["source_caption"])
    ledger = Ledger(catalog, forgotten, todo, fingerprint, run.run_id)

    def commit(shard: Shard | None, keys: pa.Table) -> None:
        if shard:
            catalog.media.commit([shard], [], run.note | {"phase": "curate"})
        # Media first: a crash in between re-reads these objects, finds their media known, and records them then.
        ledger.record(keys)

    def reject(row: pa.Table, reason: str, detail: str) -> pa.Table:
        said = {"kind": "unknown", "reject_reason": reason, "reject_detail": detail}
        ends = pa.array([None], pa.bool_())
        return rejected(schema, ledger.unread(row) | said).append_column("ends_container", ends)

    known = catalog.media.scan(["media_id"], pc.field("fingerprint") == fingerprint)["media_id"]
    banned, constants = forgotten.id_array(), run.note | {"fingerprint": fingerprint}
    sink = Sink(catalog.root, "media", constants, list(KEYS), commit, known, banned)
    run.workers.run(curate_stages(config), ledger.listed(), "uri", sink, meter, reject, ledger)
