"""The command line: `tokenmill run CONFIG` and its relatives. Parses, calls, prints; the work is elsewhere.

Exit codes: 0 done, 1 a message says what to do, 130 interrupted (the same command continues).
"""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tokenmill.pipeline.config import ConfigError, RunConfig, load
from tokenmill.storage.errors import UserError

app = typer.Typer(
    help="From raw images and video to a trained, sampling next-token transformer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tokenizer_app = typer.Typer(help="The vision tokenizer.", no_args_is_help=True)
app.add_typer(tokenizer_app, name="tokenizer")
export_app = typer.Typer(help="Kept media as files.", no_args_is_help=True)
app.add_typer(export_app, name="export")

_PLAIN_WIDTH = 120
console = Console(width=None if Console().is_terminal else _PLAIN_WIDTH)

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
PlanOnly = Annotated[
    bool, typer.Option("--plan", "--dry-run", help="Say what would be read, computed and written, and why; do nothing.")
]
PHASES = ("curate", "caption", "tokenize", "train")


def _at(config: Path, sets: list[str] | None, version: int | None) -> RunConfig:
    """The config, looking at `version` of the dataset."""
    return load(config, [*(sets or []), *([] if version is None else [f"version={version}"])])


def _run(config: RunConfig, phases: tuple[str, ...], command: str, plan_only: bool) -> None:
    from tokenmill.pipeline.run.line import run_phases

    run_phases(config, phases, command, console, plan_only)


@app.command()
def run(config: ConfigPath, sets: Sets = None, plan: PlanOnly = False) -> None:
    """All phases: curate, caption, tokenize, train. Run it again to refresh: only what is new or changed is done."""
    _run(load(config, sets), PHASES, "run", plan)


@app.command()
def curate(
    config: ConfigPath,
    sets: Sets = None,
    all_scores: Annotated[
        bool, typer.Option("--all-scores", help="Compute expensive scores also where no verdict hangs on them.")
    ] = False,
    plan: PlanOnly = False,
) -> None:
    """Probe, score, cut and decide: files become media, each kept or rejected with a reason."""
    _run(
        load(config, [*(sets or []), *(["curate.all_scores=true"] if all_scores else [])]), ("curate",), "curate", plan
    )


@app.command()
def redecide(config: ConfigPath, sets: Sets = None) -> None:
    """Apply the config's rules to stored scores. No file is opened; a run goes on with what is newly kept."""
    from tokenmill.pipeline.run.line import redecide as redecide_stored

    redecide_stored(load(config, sets), console)


@app.command()
def rules(
    config: ConfigPath,
    sets: Sets = None,
    out: Annotated[Path, typer.Option("--out", help="The PNG with histograms of the scores.")] = Path("rules.png"),
    version: Version = None,
) -> None:
    """What each rule rejects alone and in sequence, and what moving its thresholds would do; from stored scores."""
    from tokenmill.pipeline.reports.rules_report import print_rules

    print_rules(_at(config, sets, version), out, console)


@app.command()
def sheet(
    config: ConfigPath,
    reason: Annotated[str, typer.Option("--reason", help="A reject_reason, near, semantic, or kept.")] = "kept",
    kind: Annotated[str | None, typer.Option("--kind", help="image, video or unknown; default: all.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many media at most.")] = 48,
    seed: Annotated[int, typer.Option("--seed", help="Chooses which.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="The PNG to write.")] = Path("sheet.png"),
    sets: Sets = None,
    version: Version = None,
) -> None:
    """Draw the media of one verdict with their scores."""
    from tokenmill.pipeline.reports.verdict_sheet import draw_verdict

    draw_verdict(_at(config, sets, version), reason, kind, limit, seed, out, console)


@app.command()
def caption(config: ConfigPath, sets: Sets = None, plan: PlanOnly = False) -> None:
    """Give kept media a caption."""
    _run(load(config, sets), ("caption",), "caption", plan)


@app.command()
def tokenize(config: ConfigPath, sets: Sets = None, plan: PlanOnly = False) -> None:
    """Turn kept media into rows of discrete codes."""
    _run(load(config, sets), ("tokenize",), "tokenize", plan)


@app.command()
def train(config: ConfigPath, sets: Sets = None, version: Version = None, plan: PlanOnly = False) -> None:
    """Train one transformer on the token shards of one pinned version."""
    _run(_at(config, sets, version), ("train",), "train", plan)


@app.command()
def status(
    config: ConfigPath,
    sets: Sets = None,
    as_json: AsJson = False,
    version: Version = None,
) -> None:
    """Counts of every table, rejections by reason, versions, fingerprints, and what the last run did."""
    from tokenmill.pipeline.reports.status import print_status

    print_status(_at(config, sets, version), console, as_json)


@app.command()
def log(config: ConfigPath, sets: Sets = None, as_json: AsJson = False) -> None:
    """Versions of the dataset: which run made them, when, and how many rows of each table came and went."""
    from tokenmill.pipeline.reports.versions import print_log

    print_log(load(config, sets), as_json, console)


@app.command()
def diff(
    config: ConfigPath,
    one: Annotated[int, typer.Argument(metavar="V1", min=0, help="The version before.")],
    two: Annotated[int, typer.Argument(metavar="V2", min=0, help="The version after.")],
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Media added, removed, recaptioned and tokenized anew between two versions."""
    from tokenmill.pipeline.reports.versions import print_difference

    print_difference(load(config, sets), one, two, as_json, console)


@app.command()
def forget(
    config: ConfigPath,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Of a medium or a file, whole; repeatable.")] = None,
    uris: Annotated[list[str] | None, typer.Option("--uri", help="Where a file stands; repeatable.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A text file with one id or uri per line.")] = None,
    sets: Sets = None,
) -> None:
    """Remove media from all tables, past versions and exports, for good; later runs never bring them back."""
    from tokenmill.pipeline.commands.forget import forget as forget_media

    try:
        lines = [] if file is None else [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"--file {file}: {error.strerror}; give a text file with one id or uri per line") from None
    keys = [*(ids or []), *(uris or []), *lines]
    if not keys:
        raise ConfigError("nothing to forget; give --id, --uri or --file")
    forget_media(load(config, sets), keys, console)


@app.command()
def vacuum(
    config: ConfigPath,
    hours: Annotated[float, typer.Option("--hours", min=0, help="Versions younger than this stay readable.")] = 168,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only.")] = False,
    sets: Sets = None,
) -> None:
    """Delete shards of killed runs, and of versions that are too old and no model was trained on."""
    from tokenmill.pipeline.commands.vacuum import vacuum as vacuum_tables

    vacuum_tables(load(config, sets), hours, dry_run, console)


@app.command()
def show(
    config: ConfigPath,
    media_id: Annotated[str, typer.Argument(metavar="MEDIA_ID", help="Of a medium, or its first letters; or a uri.")],
    sets: Sets = None,
    version: Version = None,
) -> None:
    """Everything known of one medium."""
    from tokenmill.pipeline.reports.status import print_medium

    print_medium(_at(config, sets, version), media_id, console)


@app.command()
def sample(
    config: ConfigPath,
    prompt: Annotated[list[str], typer.Option("--prompt", help="What to draw; repeatable.")],
    out: Annotated[Path, typer.Option("--out", help="The PNG to write.")] = Path("sample.png"),
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="Repeatable; every prompt is drawn with each.")
    ] = None,
    sets: Sets = None,
) -> None:
    """Draw pictures from the trained model; several prompts or seeds give a grid."""
    from tokenmill.pipeline.reports.draw import sample_grid

    sample_grid(load(config, sets), prompt, seed or [0], out, console)


@app.command()
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


OutFolder = Annotated[str, typer.Option("--out", help="A folder or s3:// prefix.")]
Prune = Annotated[bool, typer.Option("--prune", help="Delete files of media that are kept no more.")]


@export_app.command("images")
def export_images(
    config: ConfigPath, out: OutFolder, prune: Prune = False, sets: Sets = None, version: Version = None
) -> None:
    """Copy the kept images, byte for byte, with a captions.jsonl."""
    from tokenmill.pipeline.export.files import export_media

    export_media(_at(config, sets, version), "image", out, prune, console)


@export_app.command("clips")
def export_clips(
    config: ConfigPath, out: OutFolder, prune: Prune = False, sets: Sets = None, version: Version = None
) -> None:
    """Write the kept clips as mp4, cut at their frames and encoded anew, without sound, with a captions.jsonl."""
    from tokenmill.pipeline.export.files import export_media

    export_media(_at(config, sets, version), "video", out, prune, console)


@export_app.command("webdataset")
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


@app.command("convert-head")
def convert_head(
    source: Annotated[Path, typer.Argument(metavar="PTH", help="LAION's published aesthetic predictor.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The safetensors file to write.")],
) -> None:
    """Turn LAION's published linear (or improved) aesthetic predictor into a head for curate.clip.aesthetic_head."""
    from tokenmill.stages.embed.linear_heads import convert_head as convert

    dim = convert(source, out)
    console.print(f"{out}: a head on embeddings of {dim} numbers", highlight=False)


@tokenizer_app.command("train")
def tokenizer_train(
    config: ConfigPath,
    sets: Sets = None,
    out: Annotated[str | None, typer.Option("--out", help="Folder for the model; default: ROOT/tokenizer.")] = None,
) -> None:
    """Train a vision tokenizer on the kept media of the catalog (curating first) and save it for transformers."""
    from tokenmill.pipeline.vision.train import train_tokenizer

    train_tokenizer(load(config, sets), out, console)


@tokenizer_app.command("eval")
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
    """Judge the config's vision tokenizer (tokenize.tokenize.model) on kept media, beside JPEG at equal bits."""
    from tokenmill.pipeline.vision.evaluate import EvalOptions, evaluate

    try:
        sides = tuple(sorted({int(side) for side in sizes.split(",")}))
    except ValueError:
        raise ConfigError(f"--sizes {sizes}: write whole pixels with commas, such as 128,256") from None
    evaluate(load(config, sets), EvalOptions(images, sides, out, folder, lpips, fid), console)


@tokenizer_app.command("convert")
def tokenizer_convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder or hub name in BAAI's published layout.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write, new or an earlier result.")],
) -> None:
    """Turn the published Emu3 vision tokenizer into a folder that transformers loads, for tokenize.tokenize.model."""
    from tokenmill.tokenizer.vision.convert import convert

    identity = convert(source, out)
    console.print(f"{out}: weights {identity[:12]}; use it with --set tokenize.tokenize.model={out}", highlight=False)


def main() -> None:
    """Entry point of the `tokenmill` command."""
    try:
        app()
    except UserError as error:
        Console(stderr=True).print(f"tokenmill: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        Console(stderr=True).print("\nInterrupted. What was committed stays; run the same command to continue.")
        sys.exit(130)


if __name__ == "__main__":
    main()
