"""Every command that the README and the pages of docs/ show is run, page by page, on a small folder of pictures."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageFilter
from published_layout import published_tensors, save_published
from transformers import Emu3VQVAE, Emu3VQVAEConfig

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[3]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
ELSEWHERE = {"make demo", "make test", "make setup && source .venv/bin/activate", "python benchmarks/builtin_corpus.py"}
MODEL = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "intermediate_size": 32}
SMALL_VISION = "{channel_multiplier: [1, 1], codebook_size: 16, embed_dim: 4}"
# Need a scheduler, and are run at one in tests/pipeline/jobs; a server, which tests/pipeline/looking asks.
OF_A_CLUSTER = ("tokenmill submit", "tokenmill jobs", "tokenmill explore")
# What makes a shown command small: by its beginning, options that are added.
SMALLER = {
    "tokenmill tokenizer train configs/": "sources.0.uri=photos tokenizer.train.init_from=null tokenizer.train.steps=2 "
    "tokenizer.train.batch=4 tokenizer.train.crops_px=[16] tokenizer.train.sides_px=[32] tokenizer.train.loss={} "
    f"tokenizer.train.video_share=0 tokenizer.resources.compile=false tokenizer.train.model='{SMALL_VISION}'",
    "tokenmill captioner train": "captioner.train.scratch={} captioner.train.optimizer='{steps: 2, batch: 2}' "
    "captioner.train.held_out_share=0.4",
    "tokenmill run configs/": "train.optimizer.epochs=1 train.model.hidden_size=32 train.model.num_layers=1",
    "tokenmill run Pictures.yaml": "train.model.hidden_size=32 train.model.num_layers=1",
}
COLUMNS = "120"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder with pictures, the shipped configs, and `photos.yaml`, a config of a small training."""
    for folder in ("photos", "Pictures", "published"):
        (tmp_path / folder).mkdir()
    rng, inside = np.random.default_rng(0), ("fork_1", "fork_10", "lamp", "soft", "dot", "blurred")
    names = [*(f"photos/{name}" for name in inside), "Pictures/lake", "Pictures/fog", "scissors_1"]
    for number, name in enumerate(names):
        side_px = 64 if name == "photos/dot" else 144 + number
        blur_px = {"photos/soft": 1.8, "photos/blurred": 6.0, "Pictures/fog": 2.5}.get(name, 0)
        tiles = Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8))
        picture = tiles.resize((side_px, side_px), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(blur_px))
        picture.save(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.txt").write_text(f"a picture called {name}, and some more words about it")
    (tmp_path / "configs").symlink_to(PROJECT / "configs")
    document = yaml.safe_load((PROJECT / "configs" / "folder.yaml").read_text())
    document |= {"root": "runs/photos", "cluster": {"num_cpus": 2}}
    document["train"] |= {"model": MODEL, "optimizer": {"steps": 2, "warmup_steps": 1}}
    document["tokenizer"] = {
        "train": {"model": yaml.safe_load(SMALL_VISION), "steps": 2, "batch": 4, "crops_px": [16], "sides_px": [32]}
    }
    document["sample"] = {"grid_h": 2, "grid_w": 2}
    text = yaml.safe_dump(document)
    assert "sharpness >= 20" in text
    (tmp_path / "photos.yaml").write_text(text)
    (tmp_path / "prompts.txt").write_text("a lamp\na fork\n")
    torch.save({"weight": torch.zeros(1, 12), "bias": torch.zeros(1)}, tmp_path / "head.pth")
    settings = {"base_channels": 32, "channel_multiplier": [1, 1, 2, 2], "num_res_blocks": 1, "hidden_size": 64}
    small = Emu3VQVAEConfig(codebook_size=64, **settings)
    save_published(published_tensors(Emu3VQVAE(small)), tmp_path / "published")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", COLUMNS)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def shown(page: Path) -> list[tuple[str, bool]]:
    """Commands in the order of the page, with whether the page shows them to fail: lines of consoles, and the cells of
    tables that begin with a command.
    """
    text = page.read_text()
    found = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for part in re.split(r"^\$ ", block.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command.split("  #")[0].strip(), output.startswith("tokenmill: ")))
    for cell in re.findall(r"^\| (`tokenmill [^|]*?) \|", text, re.MULTILINE):
        found += [(command, False) for command in re.findall(r"`(tokenmill [^`]*)`", cell)]
    return found


def told(command: str, home: Path) -> str:
    """The command with names in place of placeholders."""
    words = re.sub(r" \[[^]]*\]", "", command)  # optional parts
    for placeholder, name in (
        ("--id/--uri/--file", f"--uri {home}/photos/lamp.jpg"),
        ("/home/me", str(home)),
        ("../shared/data", "photos"),
        ("build/builtin-corpus/held_out", "photos"),
        ("V1 V2", "1 1"),
        ("init FOLDER", "init photos --out made.yaml --root runs/made"),
        ("FILE.jsonl", "captions.jsonl"),
        ("PTH OUT", "head.pth head.safetensors"),
        ("SOURCE OUT", "published converted"),
        ("--prompts FILE --out DIR", "--prompts prompts.txt --out drawings"),
        ("prefer page CONFIG DIR", "prefer page CONFIG drawings"),
        ("--pictures DIR", "--pictures Pictures"),
        ("--out DIR", f"--out out/{re.sub('[^a-z]', '', command)}"),
        ("MEDIA_ID", f"{home}/photos/fork_1.jpg"),
        ("CONFIG", "photos.yaml"),
    ):
        words = words.replace(placeholder, name)
    for beginning, sets in SMALLER.items():
        if words.startswith(beginning):
            words += "".join(f" --set {item}" for item in re.findall(r"(?:[^\s']|'[^']*')+", sets))
    return words


def call(command: str, home: Path) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", "-c", command], cwd=home, capture_output=True, text=True, timeout=400)


@pytest.mark.parametrize("page", [page for page in PAGES if shown(page)], ids=lambda page: page.name)
def test_commands_that_a_page_shows(page, home):
    commands = shown(page)
    if page.name not in ("README.md", "refresh.md", "tokenize.md"):  # these begin with a corpus that was run
        config = "configs/folder.yaml" if page.name == "filter.md" else "photos.yaml"
        assert call(told(f"tokenmill run {config}", home), home).returncode == 0
    for command, fails in commands:
        is_of_a_cluster = command.startswith(OF_A_CLUSTER) and "--dry-run" not in command
        if command in ELSEWHERE or command == "tokenmill demo" or is_of_a_cluster:
            continue
        done = call(told(command, home), home)
        assert done.returncode == int(fails), f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr


def test_what_is_run_elsewhere_is_there():
    makefile = (PROJECT / "Makefile").read_text()
    for command in ELSEWHERE:
        name = command.split()[1]
        assert (
            f"\n{name}:" in makefile
            if command.startswith("make")
            else name.startswith(".venv") or (PROJECT / name).is_file()
        )
    assert shutil.which("make")
