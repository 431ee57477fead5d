"""The phases of a run over one catalog: curate, caption, tokenize, train.

Each of the first three is the same loop: what the phase before keeps, less what is done with this fingerprint, goes
through the stages into shards that are committed on the way. All start by looking at what is there, so a second run of
an unchanged config reads no media, and a run after a kill does the rest.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog import models
from tokenmill.pipeline.catalog.forgotten import Forgotten, drop_forgotten
from tokenmill.pipeline.catalog.lease import new_run_id
from tokenmill.pipeline.catalog.ledger import KEYS, Ledger
from tokenmill.pipeline.catalog.records import write_record
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError, Shard, Table
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.flow.flow import Sink
from tokenmill.pipeline.refresh import refresh
from tokenmill.pipeline.refresh.sources import Listing, list_sources, with_captions
from tokenmill.pipeline.reports.terminal import Meter, PhaseReport, Step
from tokenmill.pipeline.run import plan
from tokenmill.pipeline.run.workers import Workers
from tokenmill.stages.table.columns import CAPTIONS, MEDIA
from tokenmill.storage.cpu import emulation
from tokenmill.tokenizer.shards import TOKENS
from tokenmill.tokenizer.vision import weights
from tokenmill.tokenizer.webdataset_shards import Export, ExportError, read_export
from tokenmill.training.job import DONE, TrainJob
from tokenmill.training.run.curves import draw_curves


@dataclass
class Run:
    """One invocation: the config, its catalog, and what has been done so far."""

    config: RunConfig
    console: Console
    command: str
    reports: list[PhaseReport] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    run_id: str = field(default_factory=new_run_id)

    def __post_init__(self) -> None:
        self.catalog = Catalog(self.config.root, self.config.version)
        self.workers = Workers(self.config.cluster)

    @cached_property
    def listing(self) -> Listing:
        """What the sources hold, listed once for the plan and the work. Raises ConfigError."""
        return list_sources(self.config.sources)

    def record(self) -> None:
        """Keep what the run did under `<root>/runs`; `status` shows the newest."""
        reports = [report.as_dict() for report in self.reports]
        write_record(self.catalog, self.config, self.run_id, self.command, reports)

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Meter]:
        """A phase's live progress; its report joins the run's when the phase ends, whichever way."""
        report = PhaseReport(name)
        self.reports.append(report)
        with Meter(self.console, report, total, unit) as meter:
            yield meter


def _rejected(schema: pa.Schema, values: dict[str, Any]) -> pa.Table:
    names = [f for f in schema if f.name not in ("fingerprint", "run_id")]
    return pa.table({f.name: pa.array([values.get(f.name)], f.type) for f in names})


def curate(run: Run) -> None:
    """Files of the sources become rows of `media`. Raises ConfigError, PlanError, CatalogError."""
    config, catalog = run.config, run.catalog
    fingerprint = refresh.curate_fingerprint(config)
    listing = run.listing
    catalog.create()
    forgotten = Forgotten.load(catalog.root)
    listing.rows = forgotten.without(listing.rows)
    drop_forgotten(catalog, forgotten, run.run_id)
    num_redecided = refresh.redecide(catalog, config, run.run_id)
    num_reopened = refresh.reopen(catalog, config, run.run_id)
    changes = refresh.source_changes(listing, catalog, fingerprint)
    todo = changes.todo.append_column("source_caption", with_captions(changes.todo)["source_caption"])
    ledger = Ledger(catalog, forgotten, todo, fingerprint, run.run_id)

    def commit(shard: Shard | None, keys: pa.Table) -> None:
        if shard:
            catalog.media.commit([shard], [], {"run_id": run.run_id, "phase": "curate"})
        # Media first: a crash in between re-reads these objects, finds their media known, and records them then.
        ledger.record(keys)

    def reject(row: pa.Table, reason: str, detail: str) -> pa.Table:
        said = {"kind": "unknown", "reject_reason": reason, "reject_detail": detail}
        ends = pa.array([None], pa.bool_())
        return _rejected(MEDIA, ledger.unread(row) | said).append_column("ends_container", ends)

    with run.phase("curate", changes.todo.num_rows, "files") as meter:
        report = meter.report
        report.num_read = changes.todo.num_rows
        report.numbers = {
            "num_listed": listing.rows.num_rows,
            "num_new": changes.num_new,
            "num_changed": changes.num_changed,
            "num_remeasured": changes.num_remeasured,
            "num_recaptioned": changes.recaptioned.num_rows,
            "num_gone": len(changes.gone),
            "num_unchanged": changes.num_unchanged,
            "num_redecided": num_redecided,
            "num_reopened": num_reopened,
            "ignored": dict(listing.ignored),
        }
        if changes.todo.num_rows:
            known = catalog.media.scan(["media_id"], pc.field("fingerprint") == fingerprint)["media_id"]
            banned = forgotten.id_array()
            sink = Sink(catalog.root, "media", _constants(fingerprint, run), list(KEYS), commit, known, banned)
            run.workers.run(plan.curate_plan(config), ledger.listed(), "uri", sink, meter, reject, ledger)
        else:
            meter.note(f"all {listing.rows.num_rows} files are known and unchanged; none was read")
        refresh.forget_gone(catalog, changes.gone, run.run_id)
        uses_source = config.caption.captioner == "source"
        refresh.recaption(catalog, changes.recaptioned, with_captions(changes.recaptioned), run.run_id)
        report.numbers["reconciled"] = refresh.reconcile(
            catalog, fingerprint, uses_source, run.run_id, config.curate.duplicates
        )


def caption(run: Run) -> None:
    """Kept media get a caption."""
    catalog = run.catalog
    fingerprint = refresh.caption_fingerprint(run.config)
    todo = refresh.without_caption(catalog, fingerprint, run.config.cluster)
    _simple_phase(
        run,
        plan.caption_plan(run.config),
        catalog.captions,
        CAPTIONS,
        todo,
        [fingerprint],
        ["media_id", "reject_reason"],
    )
    refresh.drop_stale(catalog, "captions", [fingerprint], run.run_id)


def tokenize(run: Run) -> None:
    """Kept, captioned media become rows of `tokens`."""
    catalog = run.catalog
    fingerprints = tokens_fingerprints(run.config)
    todo = refresh.without_tokens(catalog, fingerprints, run.config.tokenize.frames, run.config.cluster)
    plan.check_clips(run.config, todo["kind"].to_pylist())
    keys = ["media_id", "reject_reason", "frames_trimmed"]
    dtype, on_gpu = run.config.tokenize.new_dtype, run.config.tokenize.resources.num_gpus > 0
    slow = emulation(dtype, on_gpu)
    _simple_phase(run, plan.tokenize_plan(run.config), catalog.tokens, TOKENS, todo, fingerprints, keys, slow)
    refresh.drop_stale(catalog, "tokens", fingerprints, run.run_id)
    run.reports[-1].numbers |= {"dtype": dtype, "captions_synced": refresh.sync_captions(catalog, run.run_id)}


def tokens_fingerprints(config: RunConfig) -> list[str]:
    """Fingerprints of token rows that stand for this config and the weights that its model name stands for now; new
    rows have the first.
    """
    by_dtype = refresh.tokenize_fingerprints(config, weights.identity(config.tokenize.model))
    return [by_dtype.pop(config.tokenize.new_dtype), *by_dtype.values()]


def _simple_phase(
    run: Run,
    phase: plan.PhasePlan,
    table: Table,
    schema: pa.Schema,
    todo: pa.Table,
    fingerprints: list[str],
    keys: list[str],
    note: str | None = None,
) -> None:
    def commit(shard: Shard | None, rows: pa.Table) -> None:
        if shard:
            table.commit([shard], [], {"run_id": run.run_id, "phase": phase.phase})
        if "frames_trimmed" in rows.schema.names:
            trimmed = run.reports[-1].numbers.get("frames_trimmed", 0)
            run.reports[-1].numbers["frames_trimmed"] = trimmed + (pc.sum(rows["frames_trimmed"]).as_py() or 0)

    def reject(row: pa.Table, reason: str, _detail: str) -> pa.Table:
        values = {name: row[name][0].as_py() for name in row.schema.names}
        return _rejected(schema, values | {"reject_reason": reason, "captioner": "none"})

    with run.phase(phase.phase, todo.num_rows, "media") as meter:
        meter.report.num_read = todo.num_rows
        if not todo.num_rows:
            meter.note("nothing new to do; no medium was read")
            return
        if note is not None:
            meter.note(note)
        known = table.scan(["media_id"], pc.field("fingerprint").isin(fingerprints))["media_id"]
        sink = Sink(run.catalog.root, table.name, _constants(fingerprints[0], run), keys, commit, known)
        run.workers.run(phase, todo, "media_id", sink, meter, reject)


def _constants(fingerprint: str, run: Run) -> dict[str, str]:
    return {"fingerprint": fingerprint, "run_id": run.run_id}


def _export(uri: str, version: int | None) -> Export:
    """The export to train on; of `version` unless that is null."""
    try:
        export = read_export(uri)
    except ExportError as error:
        raise CatalogError(f"train.shards: {error}") from None
    if version not in (None, export.tokens_version):
        raise CatalogError(
            f"train.shards: {uri} holds tokens version {export.tokens_version}, not {version}; "
            f"leave --version out, or bring it there with `tokenmill export webdataset --version {version}`"
        )
    return export


def train_job(config: RunConfig, catalog: Catalog) -> TrainJob:
    """The training of `config` on a pinned version of `tokens`, from the table or an export of it.

    Raises CatalogError when that version cannot be read any more, unless it was trained on already.
    """
    part, tokens = config.train, catalog.tokens
    export = None if part.shards is None else _export(part.shards, config.version)
    version = tokens.version if export is None else export.tokens_version
    export_id = None if export is None else export.id
    what = models.with_dtype(catalog.root, part.what, version, export_id, part.resources.use_gpu)
    uri = models.run_uri(catalog.root, what, version, export_id)
    is_done = storage.exists(storage.join(uri, DONE))
    by_dtype = refresh.tokenize_fingerprints(config, weights.identity(config.tokenize.model))
    first, *others = by_dtype.values()  # in one order on all machines
    return TrainJob(
        config=what,
        shard_uris=tokens.files(version, must_exist=not is_done) if export is None else export.shard_uris,
        codebook_size=weights.codebook_size(config.tokenize.model),
        run_uri=uri,
        tokens_version=version,
        tokens_fingerprint=first,
        equal_fingerprints=others,
        export_id=export_id,
        removed={} if export is None else export.removed,
    )


def train(run: Run) -> None:
    """One transformer over the shards of one pinned version of `tokens`, from the table or an export of it; resumed
    from its checkpoint when there is one.
    """
    from tokenmill.training.run.loop import fit  # imports Ray

    part, tokens = run.config.train, run.catalog.tokens
    job = train_job(run.config, run.catalog)
    version, uri = job.tokens_version, job.run_uri
    is_done = storage.exists(storage.join(uri, DONE))
    with run.phase("train", 0, "steps") as meter:

        def show(step: int, total: int, losses: dict[str, float], tokens_per_s: float) -> None:
            meter.total = total
            shown = "  ".join(f"{name} {value:.3f}" for name, value in losses.items() if name != "structure")
            meter.at(step, f"{shown}  {tokens_per_s:,.0f} tokens/s")

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
