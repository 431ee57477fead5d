"""Commands before the first run: init, doctor, schema."""

from pathlib import Path
from typing import Annotated

import typer

from tokenmill.pipeline.commands.options import AsJson, Sets, console, load


def init(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A folder, a file or s3://bucket/prefix.")] = ".",
    out: Annotated[
        Path | None, typer.Option("--out", help="The config to write; default: NAME.yaml here, never in FOLDER.")
    ] = None,
    root: Annotated[
        str | None, typer.Option("--root", help="Where runs write; default: runs/NAME beside the config.")
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Files to list at most.")] = 10_000,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the config.")] = False,
) -> None:
    """Look at a folder or bucket, write a commented config that fits, and say what the first run will do."""
    from tokenmill.pipeline.start.init import Init, init as make

    make(Init(folder, out, root, force, most), console)


def schema(
    out: Annotated[Path | None, typer.Option("--out", help="A file; default: printed.")] = None,
) -> None:
    """The JSON Schema of the config, by which editors complete and check it."""
    from tokenmill.pipeline.start.schema import schema_text

    if out is None:
        typer.echo(schema_text(), nl=False)
    else:
        out.write_text(schema_text())
        console.print(f"Wrote {out}", highlight=False)


def doctor(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="YAML file of a run; default: the machine.")
    ] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Look at this machine and at what a config asks for: packages, GPU, memory, rights, models, servers; exit code 1
    where something must be mended.
    """
    from tokenmill.pipeline.start.doctor import doctor as examine

    if not examine(None if config is None else load(config, sets), as_json, console):
        raise typer.Exit(1)
