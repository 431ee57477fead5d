"""Commands of the captioner: captioner try, captioner train."""

from pathlib import Path
from typing import Annotated

import typer

from tokenmill.pipeline.commands import completion
from tokenmill.pipeline.commands.options import ConfigPath, Sets, console, load


def captioner_try(
    config: ConfigPath,
    captioner: Annotated[
        list[str] | None,
        typer.Option(
            "--captioner", help="A name; repeatable. Default: those in use.", autocompletion=completion.captioners
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--n", min=1, help="How many media at most.")] = 20,
    kind: Annotated[str | None, typer.Option("--kind", help="image or video; default: both.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Chooses which.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="The PNG to write.")] = Path("captions.png"),
    sets: Sets = None,
) -> None:
    """Ask captioners about a few kept media and draw what they say side by side; nothing else is written."""
    from tokenmill.pipeline.captioner.trial import try_captioners

    try_captioners(load(config, sets), captioner or [], limit, kind, seed, out, console)


def captioner_train(config: ConfigPath, sets: Sets = None) -> None:
    """Train a captioner on the captions of the catalog (curating first), judge it on held-out media, and save it for
    engine transformers, below ROOT/captioner.
    """
    from tokenmill.pipeline.captioner.train import train_captioner

    train_captioner(load(config, sets), console)
