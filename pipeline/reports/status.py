"""What the catalog holds, in words and numbers: `status`, `show`, and the closing table of a run. Reads, never
writes.
"""

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog import sql
from tokenmill.pipeline.catalog.lease import at_work
from tokenmill.pipeline.catalog.records import newest_first
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.reports.terminal import PhaseReport, reasons_of, shown, table, with_meaning
from tokenmill.pipeline.reports.watch import state as at_work_line
from tokenmill.stages.select.decide import NOT_SCORED
from tokenmill.stages.select.duplicates import KEPT
from tokenmill.training.job import DONE

_COUNTED = """
with kinds as (select media_id, any_value(kind) as kind from media group by media_id),
-- one that is measured anew has two rows for a while
counted as (
    select 'curate' as phase, 0 as number, kind, reject_reason as reason, count(*) as count from media group by all
    union all by name
    select 'duplicates' as phase, 1 as number, kind, nullif(method, $kept) as reason, count(*) as count
    from duplicates join kinds using (media_id) group by all
    union all by name
    select case captioner when 'source' then 'caption' else 'caption ' || captioner end as phase, 2 as number, kind,
    c.reject_reason as reason, count(*) as count, count(*) filter (caption is null) as empty
    from captions c join kinds using (media_id) group by all
    union all by name
    select 'tokenize' as phase, 3 as number, m.kind, t.reject_reason as reason, count(*) as count
    from tokens t join kinds m using (media_id) group by all)
select * from counted order by number, phase, kind, count desc, reason"""


def _accounts(catalog: Catalog) -> list[dict[str, Any]]:
    """One entry per phase and kind: seen = kept + rejected by reason, as the tables stand."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sql.ask_catalog(catalog, _COUNTED, {"kept": KEPT}).to_pylist():
        new = {
            "phase": row["phase"],
            "kind": row["kind"],
            "seen": 0,
            "kept": 0,
            "rejected": 0,
            "reasons": {},
            "without_caption": 0,
        }
        one = found.setdefault((row["phase"], row["kind"]), new)
        one["seen"] += row["count"]
        if row["reason"] is None:
            one["kept"] += row["count"]
            one["without_caption"] = row["empty"] or 0
        else:
            one["rejected"] += row["count"]
            one["reasons"][row["reason"]] = row["count"]
    return list(found.values())


def reasons_with_kept(catalog: Catalog) -> dict[str, int]:
    """Media by verdict: `kept`, and each reason of rejection."""
    rows = catalog.media.scan(["reject_reason"])
    rejected = reasons_of(rows)
    return {"kept": rows.num_rows - sum(rejected.values()), **rejected}


def print_verdicts(before: dict[str, int], after: dict[str, int], console: Console) -> None:
    """Media by verdict under other rules."""
    made = table("Verdicts on stored scores", "verdict", "before#", "after#")
    for name in sorted(before | after, key=lambda name: -(before | after)[name]):
        made.add_row(shown(name), str(before.get(name, 0)), str(after.get(name, 0)))
    console.print(made)
    if waiting := after.get(NOT_SCORED, 0):
        console.print(f"{waiting} wait for scores; `tokenmill run` computes them and goes on", highlight=False)


_HELD = """
select count(*) filter (where status = 'present' and file_id is not null) as present,
    count(*) filter (where status <> 'present') as gone,
    (select count(*) from (select distinct uri from sources where status = 'present' and member is not null))
    as containers,
    (select count(*) from (select distinct file_id from sources where status = 'present' and file_id is not null))
    as "distinct"
from sources"""


def _sources(catalog: Catalog) -> dict[str, int]:
    (row,) = sql.ask_catalog(catalog, _HELD).to_pylist()
    return row | {"copies": row["present"] - row["distinct"]}


def closing(reports: list[PhaseReport], catalog: Catalog, console: Console) -> None:
    """The closing tables: what this run read, and the accounts of the catalog as it stands; a past version has none,
    because `vacuum` keeps only the tokens that a model was trained on.
    """
    for report in reports:
        assert report.num_seen == report.num_kept + sum(report.rejected.values()), "a row went missing in the count"
    made = table("This run", "phase", "read#", "new rows#", "copies#", "seconds#", "rows/s#", "notes")
    for report in reports:
        notes = "; ".join(shown(note, 300) for note in report.notes)
        numbers = (str(number) for number in (report.num_read, report.num_seen, report.num_copies))
        rate = "" if report.rows_per_s is None else f"{report.rows_per_s:,.1f}"
        made.add_row(report.phase, *numbers, f"{report.seconds:.1f}", rate, notes)
    console.print(made)
    if catalog.version is None:
        _print_accounts(catalog, console)


def _print_accounts(catalog: Catalog, console: Console) -> None:
    counts = _sources(catalog)
    inside = f" ({counts['containers']} containers)" if counts["containers"] else ""
    console.print(
        f"{counts['present']} files{inside} = {counts['distinct']} distinct contents + {counts['copies']} copies"
        + (f"; {counts['gone']} gone since" if counts["gone"] else ""),
        highlight=False,
    )
    made = table("Every medium", "phase", "kind", "seen#", "= kept#", "+ rejected#", "rejected by reason")
    for row in _accounts(catalog):
        reasons = ", ".join(f"{shown(reason)} {count}" for reason, count in row["reasons"].items()) or "-"
        if row["without_caption"]:
            reasons += f" ({row['without_caption']} kept without a caption)"
        made.add_row(row["phase"], row["kind"], str(row["seen"]), str(row["kept"]), str(row["rejected"]), reasons)
    console.print(made)


def _tables(catalog: Catalog) -> list[dict[str, Any]]:
    found = []
    for each in catalog:
        fingerprints = each.scan(["fingerprint"])["fingerprint"]
        counts = {item["values"]: item["counts"] for item in pc.value_counts(fingerprints).to_pylist()}
        found.append({"table": each.name, "version": each.version, "rows": len(fingerprints), "fingerprints": counts})
    return found


def _spent(catalog: Catalog, config: RunConfig) -> list[dict[str, Any]]:
    """What the captions that stand took, by captioner: tokens, seconds of requests, and money by its prices."""
    columns = ["tokens_in", "tokens_out", "seconds"]
    rows = catalog.captions.scan(["captioner", *columns], pc.field("tokens_out").is_valid())
    sums = rows.group_by("captioner").aggregate([*((name, "sum") for name in columns), ("captioner", "count")])
    found = []
    for row in sums.sort_by("captioner").to_pylist():
        spent = {name: row[f"{name}_sum"] or 0 for name in columns}
        how = config.caption.all.get(row["captioner"])
        costs = None if how is None else how.resources.costs(spent["tokens_in"], spent["tokens_out"])
        found.append({"captioner": row["captioner"], "captions": row["captioner_count"], **spent, "costs": costs})
    return found


def document(config: RunConfig) -> dict[str, Any]:
    """All that `status` says, for machines. Raises CatalogError when there is no catalog yet."""
    catalog = Catalog(config.root, config.version)
    if not catalog.exists():
        raise CatalogError(f"{catalog.root}: no catalog there yet; run `tokenmill run CONFIG` first")
    trained = storage.join(catalog.root, "training")
    runs = [storage.join(trained, name) for name in storage.list_names(trained)]
    return {
        "root": catalog.root,
        "tables": _tables(catalog),
        "sources": _sources(catalog),
        "accounts": _accounts(catalog),
        "captions": _spent(catalog, config),
        "at_work": at_work(catalog.root),
        "last_run": next(newest_first(catalog.root), None),
        "trained": [uri for uri in runs if storage.exists(storage.join(uri, DONE))],
    }


def print_status(config: RunConfig, console: Console, as_json: bool) -> None:
    """Print the state of a catalog."""
    state = document(config)
    if as_json:
        console.print_json(json.dumps(state))
        return
    made = table(state["root"], "table", "version#", "rows#", "fingerprints")
    for row in state["tables"]:
        fingerprints = ", ".join(f"{name} ({count})" for name, count in row["fingerprints"].items())
        made.add_row(row["table"], str(row["version"]), str(row["rows"]), fingerprints or "-")
    console.print(made)
    _print_accounts(Catalog(config.root, config.version), console)
    if state["captions"]:
        made = table(
            "Captions by models", "captioner", "captions#", "tokens in#", "tokens out#", "request hours#", "costs#"
        )
        for row in state["captions"]:
            numbers = [f"{row[name]:,}" for name in ("captions", "tokens_in", "tokens_out")]
            costs = "-" if row["costs"] is None else f"{row['costs']:,.2f}"
            made.add_row(shown(row["captioner"]), *numbers, f"{row['seconds'] / 3600:,.2f}", costs)
        console.print(made)
    if run := state["at_work"]:
        who = f"`tokenmill {run['command']}`, host {run['host']}, pid {run['pid']}, since {run['since']}"
        console.print(f"At work: run {run['run_id']} ({who}), renewed {run['silent_s']:.0f} s ago", highlight=False)
        console.print(f"  {at_work_line(run)}", highlight=False)
    if last := state["last_run"]:
        read = ", ".join(f"{phase['phase']} read {phase['num_read']}" for phase in last["phases"])
        console.print(f"Last run {last['run_id']} ({last['command']}){read and f': {read}'}", highlight=False)
    for uri in state["trained"]:
        console.print(f"Trained model: {shown(uri)}/model", highlight=False)


def print_medium(config: RunConfig, key: str, console: Console) -> None:
    """Print every row about one medium, found by id, by its first letters, by uri, or by name in a container."""
    catalog = Catalog(config.root, config.version)
    where = pc.starts_with(pc.field("media_id"), key) | (pc.field("uri") == key) | (pc.field("member") == key)
    media = catalog.media.scan(where=where)
    if not media.num_rows:
        raise CatalogError(f"{catalog.root}: no medium {key!r}; `tokenmill status` counts what there is")
    if len(pc.unique(media["media_id"])) > 1:
        made = table(f"{media.num_rows} media fit; name one", "media_id", "span", "verdict")
        for row in media.to_pylist():
            span = "" if row["start_s"] is None else f"{row['start_s']:.2f}-{row['end_s']:.2f} s"
            made.add_row(row["media_id"], span, shown(row["reject_reason"] or "kept"))
        console.print(made)
        return
    ids = media["media_id"].combine_chunks()
    _print_rows("media", media, console)
    sources = catalog.sources.scan(where=pc.field("file_id").isin(media["file_id"].combine_chunks()))
    _print_rows("sources", sources, console)
    _print_rows("captions", catalog.captions.scan(where=pc.field("media_id").isin(ids)), console)
    tokens = catalog.tokens.scan(where=pc.field("media_id").isin(ids))
    lengths = pc.list_value_length(tokens["codes"])
    _print_rows("tokens", tokens.drop(["codes"]).append_column("num_codes", lengths), console)


def _print_rows(name: str, rows: pa.Table, console: Console) -> None:
    for row in rows.to_pylist():
        made = table(name, "column", "value")
        for column, value in row.items():
            if value is not None:
                text = shown(f"{value:.6g}" if isinstance(value, float) else str(value), 1000)
                made.add_row(column, with_meaning(text) if column == "reject_reason" else text)
        console.print(made)
    if not rows.num_rows:
        console.print(f"{name}: no row", highlight=False)
