"""What several commands take and use: the config, overrides, a version, the console.

The config's module imports every stage, so it is imported when a command runs: `tokenmill --help` starts at once.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from tokenmill.pipeline.config import RunConfig

_PLAIN_WIDTH = 120
_AT_WORK = ("run", "curate", "caption", "tokenize", "train", "redecide")  # take --json for what they say meanwhile
places: list[str] = []  # folders of the command that runs: its root; a failure that names none is looked for there


def _console() -> Console:
    is_asked = sys.argv[1:2] and sys.argv[1] in _AT_WORK and "--json" in sys.argv
    if is_asked or os.environ.get("TOKENMILL_LOG") == "json":
        from tokenmill.pipeline.reports.events import EventConsole

        return EventConsole()
    return Console(width=None if Console().is_terminal else _PLAIN_WIDTH)


console = _console()

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the run.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the config: a.b=v; repeatable."),
]
Version = Annotated[
    int | None,
    typer.Option("--version", min=0, help="Of the dataset, as `tokenmill log` numbers them; default: newest."),
]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
AsEvents = Annotated[
    bool, typer.Option("--json", help="JSON lines of all that is said, for programs; as TOKENMILL_LOG=json.")
]


def load(config: Path, sets: list[str] | None, version: int | None = None) -> "RunConfig":
    """The config, looking at `version` of the dataset. Raises ConfigError."""
    from tokenmill.pipeline.config import load as load_config
    from tokenmill.storage import absolute

    loaded = load_config(config, [*(sets or []), *([] if version is None else [f"version={version}"])])
    places[:] = [absolute(loaded.root)]
    return loaded
