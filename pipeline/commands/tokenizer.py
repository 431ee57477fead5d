"""Commands of the vision tokenizer: tokenizer train, tokenizer eval, tokenizer convert."""

from pathlib import Path
from typing import Annotated

import typer

from tokenmill.pipeline.commands.options import ConfigPath, Sets, console, load


def tokenizer_train(
    config: ConfigPath,
    sets: Sets = None,
    out: Annotated[str | None, typer.Option("--out", help="Folder for the model; default: ROOT/tokenizer.")] = None,
) -> None:
    """Train a vision tokenizer on the kept media of the catalog (curating first) and save it for transformers."""
    from tokenmill.pipeline.vision.train import train_tokenizer

    train_tokenizer(load(config, sets), out, console)


def tokenizer_eval(
    config: ConfigPath,
    images: Annotated[int, typer.Option("--images", min=1, help="At most; and a quarter as many clips.")] = 64,
    sizes: Annotated[str, typer.Option("--sizes", help="Sides of the squares in pixels.")] = "128,256,512",
    out: Annotated[Path, typer.Option("--out", help="Folder for figures and pictures.")] = Path("tokenizer_eval"),
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Judge on its images and videos; no catalog is needed.")
    ] = None,
    lpips: Annotated[
        Path | None, typer.Option("--lpips", help="AlexNet's weights as torchvision publishes them; adds LPIPS.")
    ] = None,
    fid: Annotated[
        Path | None, typer.Option("--fid", help="Inception's weights as torch-fidelity publishes them; adds FID.")
    ] = None,
    sets: Sets = None,
) -> None:
    """Judge the config's vision tokenizer (tokenize.model) on kept media, beside JPEG at equal bits."""
    from tokenmill.pipeline.config import ConfigError
    from tokenmill.pipeline.vision.evaluate import EvalOptions, evaluate

    try:
        sides = tuple(sorted({int(side) for side in sizes.split(",")}))
    except ValueError:
        raise ConfigError(f"--sizes {sizes}: write whole pixels with commas, such as 128,256") from None
    evaluate(load(config, sets), EvalOptions(images, sides, out, folder, lpips, fid), console)


def tokenizer_convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder or hub name in BAAI's published layout.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write, new or an earlier result.")],
) -> None:
    """Turn the published Emu3 vision tokenizer into a folder that transformers loads, for tokenize.model."""
    from tokenmill.tokenizer.vision.convert import convert

    identity = convert(source, out)
    console.print(f"{out}: weights {identity[:12]}; use it with --set tokenize.model={out}", highlight=False)
