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
from tokenmill.pipeline.commands.examples import add_examples
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


command: Callable[..., None]
app = _group("From raw images and video to a trained, sampling next-token transformer.", completes=True)
for command in (init.init, init.doctor, init.schema):
    app.command()(command)
for command in (phases.run, phases.curate, phases.caption, phases.tokenize, phases.train, phases.redecide):
    app.command()(command)
app.command()(jobs.submit)
for command in (look.status, look.show, look.log, look.diff, look.rules, look.sheet, look.report, look.explore, sample):
    app.command()(command)
for command in (takedown.forget, takedown.vacuum, takedown.verify, demo):
    app.command()(command)
app.command("convert-head")(export.convert_head)
jobs_app = _group("Jobs that submit made.")
jobs_app.command("list")(jobs.jobs_list)
jobs_app.command("status")(jobs.jobs_status)
jobs_app.command("logs")(jobs.jobs_logs)
jobs_app.command("stop")(jobs.jobs_stop)
app.add_typer(jobs_app, name="jobs")
export_app = _group("Kept media as files, and models.")
export_app.command("images")(export.export_images)
export_app.command("clips")(export.export_clips)
export_app.command("webdataset")(export.export_webdataset)
export_app.command("parquet")(export.export_parquet)
export_app.command("captions")(export.export_captions)
export_app.command("model")(export.export_model)
app.add_typer(export_app, name="export")
tokenizer_app = _group("The vision tokenizer.")
tokenizer_app.command("train")(tokenizer.tokenizer_train)
tokenizer_app.command("eval")(tokenizer.tokenizer_eval)
tokenizer_app.command("convert")(tokenizer.tokenizer_convert)
app.add_typer(tokenizer_app, name="tokenizer")
eval_app = _group("Trained models, measured.")
eval_app.command("model")(eval_model)
app.add_typer(eval_app, name="eval")
captioner_app = _group("Captioners: models that write captions.")
captioner_app.command("try")(captioner.captioner_try)
captioner_app.command("train")(captioner.captioner_train)
app.add_typer(captioner_app, name="captioner")
prefer_app = _group("Drawings to choose from, and choices, for train.preferences.")
prefer_app.command("draw")(prefer.prefer_draw)
prefer_app.command("page")(prefer.prefer_page)
prefer_app.command("score")(prefer.prefer_score)
app.add_typer(prefer_app, name="prefer")
add_examples(app)


def main() -> None:
    """Entry point of the `tokenmill` command: one line for whatever ends it, and the exit code."""
    sys.exit(ending.code_of(app))


if __name__ == "__main__":
    main()
