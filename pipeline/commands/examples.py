"""One or two uses of each command, as one would type them: what `--help` ends with."""

import typer

# What `tokenmill --help` ends with.
FIRST_STEPS = "\n\n".join(
    (
        "First steps:",
        "tokenmill init ~/Pictures",
        "tokenmill run Pictures.yaml --phase curate",
        "tokenmill explore Pictures.yaml",
    )
)

EXAMPLES: dict[str, tuple[str, ...]] = {
    "init": (
        "tokenmill init ~/Pictures",
        "tokenmill init s3://corpus/photos --out photos.yaml --root s3://corpus/tables",
    ),
    "doctor": ("tokenmill doctor", "tokenmill doctor photos.yaml --json"),
    "schema": ("tokenmill schema --out schema.json",),
    "run": ("tokenmill run photos.yaml --plan", "tokenmill run photos.yaml --phase curate --phase caption"),
    "curate": ("tokenmill curate photos.yaml --set 'curate.decide.image_rules.sharp=sharpness >= 50'",),
    "caption": ("tokenmill caption photos.yaml --plan",),
    "tokenize": ("tokenmill tokenize photos.yaml --set tokenize.frames.area_px=65536",),
    "train": ("tokenmill train photos.yaml --stage first", "tokenmill train photos.yaml --watch"),
    "redecide": ("tokenmill redecide photos.yaml --set 'curate.decide.image_rules.sharp=sharpness >= 50'",),
    "submit": ("tokenmill submit photos.yaml --on slurm --dry-run",),
    "status": ("tokenmill status photos.yaml", "tokenmill status photos.yaml --watch"),
    "show": ("tokenmill show photos.yaml 3f2a", "tokenmill show photos.yaml ~/Pictures/lake.jpg"),
    "log": ("tokenmill log photos.yaml",),
    "diff": ("tokenmill diff photos.yaml 0 1",),
    "rules": ("tokenmill rules photos.yaml", "tokenmill rules photos.yaml --out rules.png"),
    "sheet": (
        "tokenmill sheet photos.yaml --reason sharp",
        "tokenmill sheet photos.yaml --captions --out captions.png",
    ),
    "report": ("tokenmill report photos.yaml", "tokenmill report photos.yaml --against 0 --out changes.html"),
    "explore": ("tokenmill explore photos.yaml",),
    "sample": (
        "tokenmill sample photos.yaml --prompt 'a red circle' --out red.png",
        "tokenmill sample photos.yaml --caption lake.jpg",
    ),
    "forget": ("tokenmill forget photos.yaml --uri ~/Pictures/lake.jpg", "tokenmill forget photos.yaml --file ids.txt"),
    "vacuum": ("tokenmill vacuum photos.yaml --dry-run",),
    "verify": ("tokenmill verify photos.yaml", "tokenmill verify photos.yaml --deep --repair"),
    "demo": ("tokenmill demo", "tokenmill demo --images 200"),
    "convert-head": ("tokenmill convert-head sa_0_4_vit_l_14_linear.pth aesthetic.safetensors",),
    "jobs list": ("tokenmill jobs list photos.yaml",),
    "jobs status": ("tokenmill jobs status photos.yaml --json",),
    "jobs logs": ("tokenmill jobs logs photos.yaml --follow",),
    "jobs stop": ("tokenmill jobs stop photos.yaml",),
    "export images": ("tokenmill export images photos.yaml --out kept",),
    "export clips": ("tokenmill export clips videos.yaml --out clips --prune",),
    "export webdataset": ("tokenmill export webdataset photos.yaml --out s3://corpus/tokens --shard-mb 256",),
    "export parquet": ("tokenmill export parquet photos.yaml --out dataset",),
    "export captions": ("tokenmill export captions photos.yaml --out captions.jsonl",),
    "export model": ("tokenmill export model photos.yaml --out model",),
    "tokenizer train": ("tokenmill tokenizer train photos.yaml --out my-tokenizer",),
    "tokenizer eval": ("tokenmill tokenizer eval photos.yaml --folder ~/Pictures",),
    "tokenizer convert": ("tokenmill tokenizer convert Emu3-VisionTokenizer vision",),
    "eval model": ("tokenmill eval model photos.yaml --out measured --n 64",),
    "captioner try": ("tokenmill captioner try photos.yaml --captioner mine --n 8",),
    "captioner train": ("tokenmill captioner train photos.yaml",),
    "prefer draw": ("tokenmill prefer draw photos.yaml --prompts prompts.txt --out drawings --each 8",),
    "prefer page": ("tokenmill prefer page photos.yaml drawings --out page.html",),
    "prefer score": ("tokenmill prefer score photos.yaml drawings --out votes.jsonl",),
}


def add_examples(app: typer.Typer, prefix: str = "") -> None:
    """End the help of every command of `app` and of its groups with its examples."""
    for command in app.registered_commands:
        name = str(command.name or getattr(command.callback, "__name__", ""))
        shown = EXAMPLES[prefix + name]
        # A blank line in an epilog is a new line on the screen; typer joins the others.
        command.epilog = "\n\n".join([f"{'Example' if len(shown) == 1 else 'Examples'}:", *shown])
    for group in app.registered_groups:
        if group.typer_instance is not None:
            add_examples(group.typer_instance, f"{group.name} ")
