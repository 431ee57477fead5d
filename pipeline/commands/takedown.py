"""Commands that take things away: forget, vacuum; and verify, which sets aside what is damaged."""

from pathlib import Path
from typing import Annotated

import typer

from tokenmill.pipeline.commands.options import AsJson, ConfigPath, Sets, console, load


def forget(
    config: ConfigPath,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Of a medium or a file, whole; repeatable.")] = None,
    uris: Annotated[list[str] | None, typer.Option("--uri", help="Where a file stands; repeatable.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A text file with one id or uri per line.")] = None,
    sets: Sets = None,
) -> None:
    """Remove media from all tables, past versions and exports, for good; later runs never bring them back."""
    from tokenmill.pipeline.commands.forget import forget as forget_media
    from tokenmill.pipeline.config import ConfigError

    try:
        lines = [] if file is None else [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"--file {file}: {error.strerror}; give a text file with one id or uri per line") from None
    keys = [*(ids or []), *(uris or []), *lines]
    if not keys:
        raise ConfigError("nothing to forget; give --id, --uri or --file")
    forget_media(load(config, sets), keys, console)


def vacuum(
    config: ConfigPath,
    hours: Annotated[float, typer.Option("--hours", min=0, help="Versions younger than this stay readable.")] = 168,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only.")] = False,
    sets: Sets = None,
) -> None:
    """Delete shards of killed runs, and of versions that are too old and no model was trained on."""
    from tokenmill.pipeline.commands.vacuum import vacuum as vacuum_tables

    vacuum_tables(load(config, sets), hours, dry_run, console)


def verify(
    config: ConfigPath,
    repair: Annotated[
        bool, typer.Option("--repair", help="Set aside what is damaged, so that the next run does just that again.")
    ] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every data file, too.")] = False,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Look for damaged files in tables, exports, checkpoints and models, by size and checksum; exits with 1 for any."""
    from tokenmill.pipeline.verify.verify import print_verified

    if not print_verified(load(config, sets), deep, repair, as_json, console):
        raise typer.Exit(1)
