"""Commands that look at a catalog and change nothing: status, show, log, diff, rules, sheet, report, explore."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenmill.pipeline.commands.options import AsJson, ConfigPath, Sets, Version, console, load
from tokenmill.storage.errors import UserError

if TYPE_CHECKING:
    from tokenmill.pipeline.config import RunConfig


def rules(
    config: ConfigPath,
    sets: Sets = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="A PNG with histograms of the scores; default: none is written.")
    ] = None,
    version: Version = None,
) -> None:
    """What each rule rejects, at first and alone, and what moving its thresholds would do; from stored scores."""
    from tokenmill.pipeline.reports.rules_report import print_rules

    print_rules(load(config, sets, version), out, console)


def sheet(
    config: ConfigPath,
    reason: Annotated[str, typer.Option("--reason", help="A reject_reason, near, semantic, or kept.")] = "kept",
    kind: Annotated[str | None, typer.Option("--kind", help="image, video or unknown; default: all.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many media at most.")] = 48,
    seed: Annotated[int, typer.Option("--seed", help="Chooses which.")] = 0,
    out: Annotated[
        str | None, typer.Option("--out", help="The PNG to write, also s3://; default: ROOT/reports/sheet.png.")
    ] = None,
    captions: Annotated[bool, typer.Option("--captions", help="Kept media with all their captions instead.")] = False,
    sets: Sets = None,
    version: Version = None,
) -> None:
    """Draw the media of one verdict with their scores, or kept ones with their captions side by side."""
    from tokenmill.pipeline.reports.sheet import default_sheet

    loaded = load(config, sets, version)
    uri = default_sheet(loaded.root) if out is None else out
    if captions:
        from tokenmill.pipeline.reports.caption_sheet import draw_captions

        draw_captions(loaded, kind, limit, seed, uri, console)
        return
    from tokenmill.pipeline.reports.verdict_sheet import draw_verdict

    draw_verdict(loaded, reason, kind, limit, seed, uri, console)


def report(
    config: ConfigPath,
    out: Annotated[
        str | None, typer.Option("--out", help="The .html to write, also s3://; default: ROOT/reports/report.html.")
    ] = None,
    against: Annotated[
        int | None, typer.Option("--against", min=0, metavar="V", help="Say what changed since this version.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Chooses the examples.")] = 0,
    sets: Sets = None,
    version: Version = None,
) -> None:
    """One page with all there is to see: funnel, rules with their scores, examples, captions, models, runs, config."""
    from tokenmill.pipeline.looking.report.report import report_uri, write_report

    loaded = load(config, sets, version)
    uri = report_uri(loaded.root) if out is None else out
    num_bytes = write_report(loaded, uri, against, seed)
    console.print(f"Look at {uri} ({num_bytes / 1e6:.1f} MB)", highlight=False)


def explore(
    config: ConfigPath,
    host: Annotated[
        str,
        typer.Option(
            "--host", help="Where to listen; another than 127.0.0.1 shows all media to whoever has the address."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 0,
    drawings: Annotated[
        str | None,
        typer.Option("--drawings", help="Folder that `prefer draw` wrote, to choose the better of two from."),
    ] = None,
    sets: Sets = None,
    version: Version = None,
) -> None:
    """Look at media, captions, copies and rules in a browser, move thresholds, and vote; until Ctrl-C."""
    from importlib.util import find_spec

    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise UserError(f"explore needs {' and '.join(missing)}: pip install tokenmill[explore]")
    from tokenmill.pipeline.looking.explorer.server import serve

    def opened(address: str) -> None:
        console.print(f"Open {address}", highlight=False, soft_wrap=True)
        console.print("Ctrl-C ends it. From another machine: ssh -L PORT:127.0.0.1:PORT HOST", highlight=False)

    serve(load(config, sets, version), host, port, opened, drawings)


def leave_report(config: "RunConfig") -> None:
    """After a run: the page, or a line that says why there is none. A run does not fail for it."""
    from tokenmill.pipeline.looking.report.report import report_uri, write_report
    from tokenmill.storage.failures import words

    uri = report_uri(config.root)
    try:
        write_report(config, uri)
    except Exception as error:  # whatever it is, the run is done
        console.print(f"No report: {words(error)}; `tokenmill report CONFIG` makes it", style="yellow", highlight=False)
        return
    console.print(f"Look at {uri}", highlight=False)


def status(
    config: ConfigPath,
    sets: Sets = None,
    as_json: AsJson = False,
    version: Version = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow the run that is at work, wherever it is, until it ends.")
    ] = False,
) -> None:
    """Counts of every table, rejections by reason, versions, fingerprints, and what the last run did."""
    loaded = load(config, sets, version)
    if watch:
        from tokenmill.pipeline.reports.watch import watch as watch_run

        watch_run(loaded.root, console)
        return
    from tokenmill.pipeline.reports.status import print_status

    print_status(loaded, console, as_json)


def log(config: ConfigPath, sets: Sets = None, as_json: AsJson = False) -> None:
    """Versions of the dataset: which run made them, when, and how many rows of each table came and went."""
    from tokenmill.pipeline.reports.versions import print_log

    print_log(load(config, sets), as_json, console)


def diff(
    config: ConfigPath,
    one: Annotated[int, typer.Argument(metavar="V1", min=0, help="The version before.")],
    two: Annotated[int, typer.Argument(metavar="V2", min=0, help="The version after.")],
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Media added, removed, recaptioned and tokenized anew between two versions."""
    from tokenmill.pipeline.reports.versions import print_difference

    print_difference(load(config, sets), one, two, as_json, console)


def show(
    config: ConfigPath,
    media_id: Annotated[str, typer.Argument(metavar="MEDIA_ID", help="Of a medium, or its first letters; or a uri.")],
    sets: Sets = None,
    version: Version = None,
) -> None:
    """Everything known of one medium."""
    from tokenmill.pipeline.reports.status import print_medium

    print_medium(load(config, sets, version), media_id, console)
