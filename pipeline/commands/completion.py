"""What a shell offers where a name of the config is asked for: phases, and the stages and captioners that a config has.

A config that cannot be read offers nothing: the command itself says why.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tokenmill import PHASES
from tokenmill.storage.errors import UserError

if TYPE_CHECKING:
    from tokenmill.pipeline.config import RunConfig


def phases(incomplete: str) -> list[str]:
    """The four."""
    return _beginning(PHASES, incomplete)


def stages(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names in `train.stages` of the command's CONFIG."""
    config = _config(ctx)
    return [] if config is None else _beginning(config.train.stages, incomplete)


def captioners(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names in `caption.captioners` of the command's CONFIG, and `source`."""
    config = _config(ctx)
    return [] if config is None else _beginning(config.caption.all, incomplete)


def _config(ctx: typer.Context) -> "RunConfig | None":
    # A line that ends in an option without its value is not parsed: what was typed stands in `args` then.
    path = ctx.params.get("config") or next((word for word in ctx.args if not word.startswith("-")), None)
    if path is None:
        return None
    from tokenmill.pipeline.config import load

    try:
        return load(Path(path))
    except UserError:
        return None


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
