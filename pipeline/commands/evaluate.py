"""`tokenmill eval model`: trained models measured on the same pictures, prompts and questions."""

from pathlib import Path
from typing import Annotated

import typer

from tokenmill.pipeline.commands import completion
from tokenmill.pipeline.commands.options import ConfigPath, Sets, console, load


def eval_model(
    config: ConfigPath,
    out: Annotated[Path, typer.Option("--out", help="Folder for eval.json and eval.png.")],
    stage: Annotated[
        list[str] | None,
        typer.Option(
            "--stage",
            help="Of train.stages; several are compared, each by its newest model. Default: the last.",
            autocompletion=completion.stages,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", help="What to draw, one on each line. Default: the captions of the held-out pictures."
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            "--pictures",
            help="Folder of held-out pictures and clips, with captions as in sources. Default: rows of the newest "
            "tokens that the models were not trained on.",
        ),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option("--questions", help="A .jsonl of questions and true answers, as data.dialogues.")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            "--features", help="For FID and KID: a CLIP model, or Inception's weights as torch-fidelity has them."
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="At most so many of each.")] = 256,
    seed: Annotated[int, typer.Option("--seed", help="Of all that is drawn.")] = 0,
    sets: Sets = None,
) -> None:
    """Measure trained models side by side: losses, likeness, FID and KID, captions, answers; a table and a page."""
    from tokenmill.pipeline.evaluation.evaluate import evaluate
    from tokenmill.pipeline.evaluation.gather import EvalOptions

    options = EvalOptions(out, tuple(stage or ()), prompts, pictures, questions, features, n, seed)
    evaluate(load(config, sets), options, console)
