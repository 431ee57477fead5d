"""Commands that write files for others: export images, clips, webdataset, parquet, captions, model; convert-head."""

from pathlib import Path
from typing import Annotated

import typer

from tokenmill.pipeline.commands import completion
from tokenmill.pipeline.commands.options import ConfigPath, Sets, Version, console, load

OutFolder = Annotated[str, typer.Option("--out", help="A folder or s3:// prefix.")]
Prune = Annotated[bool, typer.Option("--prune", help="Delete files of media that are kept no more.")]


def export_images(
    config: ConfigPath, out: OutFolder, prune: Prune = False, sets: Sets = None, version: Version = None
) -> None:
    """Copy the kept images, byte for byte, with a captions.jsonl."""
    from tokenmill.pipeline.export.files import export_media

    export_media(load(config, sets, version), "image", out, prune, console)


def export_clips(
    config: ConfigPath, out: OutFolder, prune: Prune = False, sets: Sets = None, version: Version = None
) -> None:
    """Write the kept clips as mp4, cut at their frames and encoded anew, without sound, with a captions.jsonl."""
    from tokenmill.pipeline.export.files import export_media

    export_media(load(config, sets, version), "video", out, prune, console)


def export_webdataset(
    config: ConfigPath,
    out: OutFolder,
    version: Version = None,
    shard_mb: Annotated[int, typer.Option("--shard-mb", min=1, help="Size of a tar, in units of 2^20 bytes.")] = 256,
    compact: Annotated[
        bool, typer.Option("--compact", help="Write shards that hold removed samples anew, without them.")
    ] = False,
    sets: Sets = None,
) -> None:
    """Write the kept token rows as tars that webdataset and wids open; again = what is new, changed or gone."""
    from tokenmill.pipeline.export.webdataset import export_webdataset as export

    export(load(config, sets), out, version, shard_mb, compact, console)


License = Annotated[
    str | None, typer.Option("--license", help="For the card, as the hub names it, such as apache-2.0.")
]


def export_parquet(
    config: ConfigPath,
    out: OutFolder,
    license_name: License = None,
    shard_mb: Annotated[int, typer.Option("--shard-mb", min=1, help="Of media in a file, about; of 2^20 bytes.")] = 256,
    sets: Sets = None,
    version: Version = None,
) -> None:
    """Write kept images and clips with captions as Parquet that `datasets` and the hub show, with a dataset card."""
    from tokenmill.pipeline.export.hub import export_parquet as export

    export(load(config, sets, version), out, license_name, shard_mb, console)


def export_captions(
    config: ConfigPath,
    out: Annotated[str, typer.Option("--out", help="A .jsonl file, a path or s3://.")],
    of_all: Annotated[
        bool, typer.Option("--all", help="All that count, of every captioner; default: the one that training reads.")
    ] = False,
    sets: Sets = None,
    version: Version = None,
) -> None:
    """Write the captions of kept media as lines of JSON."""
    from tokenmill.pipeline.export.captions import export_captions as export

    export(load(config, sets, version), out, of_all, console)


def export_model(
    config: ConfigPath,
    out: OutFolder,
    license_name: License = None,
    stage: Annotated[
        str | None,
        typer.Option("--stage", help="Of train.stages. Default: the last.", autocompletion=completion.stages),
    ] = None,
    sets: Sets = None,
) -> None:
    """Write the newest trained model with its vision tokenizer, processor and model card, for plain transformers."""
    from tokenmill.pipeline.export.model import export_model as export

    only = [] if stage is None else [f"train.only=[{stage}]"]
    export(load(config, [*(sets or []), *only]), out, license_name, console)


def convert_head(
    source: Annotated[Path, typer.Argument(metavar="PTH", help="LAION's published aesthetic predictor.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The safetensors file to write.")],
) -> None:
    """Turn LAION's published linear (or improved) aesthetic predictor into a head for curate.clip.aesthetic_head."""
    from tokenmill.stages.embed.linear_heads import convert_head as convert

    dim = convert(source, out)
    console.print(f"{out}: a head on embeddings of {dim} numbers", highlight=False)
