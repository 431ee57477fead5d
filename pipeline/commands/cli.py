"""The command line: `tokenmill run CONFIG` and its relatives. Parses, calls, prints; the work is elsewhere.

Exit codes: 0 done, 1 a message says what to do, 2 the command line is wrong, 70 a bug of tokenmill, 130 and 143 ended
by Ctrl-C and SIGTERM (the same command continues).
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from tokenmill.pipeline.commands import captioner, ending, export, init, jobs, look, phases, prefer, takedown, tokenizer
from tokenmill.pipeline.commands.evaluate import eval_model
from tokenmill.pipeline.commands.examples import FIRST_STEPS, add_examples
from tokenmill.pipeline.commands.options import Sets, console
from tokenmill.pipeline.commands.sample import sample


def demo(
    config: Annotated[
        Path | None, typer.Option("--config", help="Default: the demo config that comes with tokenmill.")
    ] = None,
    images: Annotated[int, typer.Option("--images", min=24, help="How many scenes to draw.")] = 1600,
    sets: Sets = None,
) -> None:
    """Make a corpus of drawn scenes, run every phase on it, draw unseen captions, and leave a contact sheet."""
    from tokenmill.pipeline.demo.show import run_demo

    run_demo(config, sets or [], images, console)


def _group(help_text: str, completes: bool = False) -> typer.Typer:
    return typer.Typer(help=help_text, no_args_is_help=True, add_completion=completes, pretty_exceptions_enable=False)


def _version(is_asked: bool) -> None:
    if is_asked:
        import tokenmill

        console.print(tokenmill.__version__, highlight=False)
        raise typer.Exit


def tokenmill(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """From raw images and video to a trained, sampling next-token transformer."""


_COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Start": (init.init, init.doctor, init.schema, demo),
    "Do": (phases.run, phases.curate, phases.caption, phases.tokenize, phases.train, phases.redecide, jobs.submit),
    "Look": (look.report, look.explore, look.status, look.rules, look.sheet, look.show, look.log, look.diff),
    "Models": (sample,),
    "Care": (takedown.forget, takedown.vacuum, takedown.verify),
}
_GROUPS: dict[str, dict[tuple[str, str], dict[str, Callable[..., None]]]] = {
    "Do": {
        ("jobs", "Jobs that submit made."): {
            "list": jobs.jobs_list,
            "status": jobs.jobs_status,
            "logs": jobs.jobs_logs,
            "stop": jobs.jobs_stop,
        },
        ("export", "Kept media as files, and models."): {
            "images": export.export_images,
            "clips": export.export_clips,
            "webdataset": export.export_webdataset,
            "parquet": export.export_parquet,
            "captions": export.export_captions,
            "model": export.export_model,
        },
    },
    "Models": {
        ("eval", "Trained models, measured."): {"model": eval_model},
        ("prefer", "Drawings to choose from, and choices, for train.preferences."): {
            "draw": prefer.prefer_draw,
            "page": prefer.prefer_page,
            "score": prefer.prefer_score,
        },
        ("tokenizer", "The vision tokenizer."): {
            "train": tokenizer.tokenizer_train,
            "eval": tokenizer.tokenizer_eval,
            "convert": tokenizer.tokenizer_convert,
        },
        ("captioner", "Captioners: models that write captions."): {
            "try": captioner.captioner_try,
            "train": captioner.captioner_train,
        },
    },
}

app = _group("", completes=True)
app.callback(epilog=FIRST_STEPS)(tokenmill)
for panel, commands in _COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
    if panel == "Models":
        app.command("convert-head", rich_help_panel=panel)(export.convert_head)
    for (name, said), of_group in _GROUPS.get(panel, {}).items():
        group = _group(said)
        for sub_name, command in of_group.items():
            group.command(sub_name)(command)
        app.add_typer(group, name=name, rich_help_panel=panel)
add_examples(app)


def main() -> None:
    """Entry point of the `tokenmill` command: one line for whatever ends it, and the exit code."""
    sys.exit(ending.code_of(app))


if __name__ == "__main__":
    main()
