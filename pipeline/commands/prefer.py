"""Commands of preferences: prefer draw, prefer page, prefer score."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tokenmill.pipeline.commands import completion
from tokenmill.pipeline.commands.options import ConfigPath, Sets, console, load

Folder = Annotated[str, typer.Argument(metavar="DRAWINGS", help="Folder that `prefer draw` wrote.")]


def prefer_draw(
    config: ConfigPath,
    prompts: Annotated[Path, typer.Option("--prompts", help="A text file, a prompt on each line.")],
    out: Annotated[str, typer.Option("--out", help="Folder or s3:// prefix; what is there is not drawn again.")],
    each: Annotated[int, typer.Option("--each", min=2, help="Drawings of a prompt. Emu3: 8 to 10.")] = 8,
    seed: Annotated[int, typer.Option("--seed", help="Of the first; the others count on.")] = 0,
    stage: Annotated[
        str | None,
        typer.Option("--stage", help="Of train.stages. Default: the last.", autocompletion=completion.stages),
    ] = None,
    sets: Sets = None,
) -> None:
    """Draw each prompt several times and keep the codes, for people or scores to choose from."""
    from tokenmill.pipeline.preferences.drawings import draw_each, read_prompts

    only = [] if stage is None else [f"train.only=[{stage}]"]
    draw_each(load(config, [*(sets or []), *only]), read_prompts(prompts), each, seed, out, console)


def prefer_page(
    config: ConfigPath,
    drawings: Folder,
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("choose.html"),
    limit: Annotated[int, typer.Option("--n", min=1, help="How many prompts at most.")] = 100,
    seed: Annotated[int, typer.Option("--seed", help="Chooses which.")] = 0,
    sets: Sets = None,
) -> None:
    """Write a page on which a person chooses the best and the worst drawing of each prompt; it saves votes.jsonl."""
    from tokenmill.pipeline.preferences.page import write_page

    write_page(load(config, sets), drawings, limit, seed, str(out), console)


def prefer_score(
    config: ConfigPath,
    drawings: Folder,
    out: Annotated[str, typer.Option("--out", help="The .jsonl to write.")],
    by: Annotated[
        Literal["likeness", "aesthetic"], typer.Option("--by", help="Of curate.clip: to the prompt, or of its head.")
    ] = "likeness",
    least: Annotated[float, typer.Option("--least", min=0, help="Best and worst must be so far apart.")] = 0.0,
    sets: Sets = None,
) -> None:
    """Choose by a score in place of people; each line says which score it was."""
    from tokenmill.pipeline.preferences.scores import vote_by_score

    vote_by_score(load(config, sets), drawings, by, least, out, console)
