"""The command line: its commands and options are this literal list, each with help; errors are one clear message."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
import yaml

from tokenmill.pipeline.commands import cli
from tokenmill.pipeline.commands.cli import app
from tokenmill.pipeline.commands.examples import EXAMPLES
from tokenmill.storage.errors import TrainingError

PROJECT = Path(__file__).resolve().parents[3]
COMMANDS = {
    "run": ["CONFIG", "--set", "--phase", "--plan", "--json"],
    "curate": ["CONFIG", "--set", "--all-scores", "--plan", "--json"],
    "redecide": ["CONFIG", "--set", "--json"],
    "rules": ["CONFIG", "--set", "--out", "--version"],
    "init": ["FOLDER", "--out", "--root", "--most", "--force"],
    "doctor": ["[CONFIG]", "--set", "--json"],
    "schema": ["--out"],
    "explore": ["CONFIG", "--host", "--port", "--drawings", "--set", "--version"],
    "report": ["CONFIG", "--out", "--against", "--seed", "--set", "--version"],
    "sheet": ["CONFIG", "--reason", "--kind", "--limit", "--seed", "--out", "--captions", "--set", "--version"],
    "export images": ["CONFIG", "--out", "--prune", "--set", "--version"],
    "export clips": ["CONFIG", "--out", "--prune", "--set", "--version"],
    "export webdataset": ["CONFIG", "--out", "--version", "--shard-mb", "--compact", "--set"],
    "export parquet": ["CONFIG", "--out", "--license", "--shard-mb", "--set", "--version"],
    "export captions": ["CONFIG", "--out", "--all", "--set", "--version"],
    "export model": ["CONFIG", "--out", "--license", "--stage", "--set"],
    "convert-head": ["PTH", "OUT"],
    "prefer draw": ["CONFIG", "--prompts", "--out", "--each", "--seed", "--stage", "--set"],
    "prefer page": ["CONFIG", "DRAWINGS", "--out", "--n", "--seed", "--set"],
    "prefer score": ["CONFIG", "DRAWINGS", "--out", "--by", "--least", "--set"],
    "caption": ["CONFIG", "--set", "--plan", "--json"],
    "tokenize": ["CONFIG", "--set", "--plan", "--json"],
    "train": ["CONFIG", "--set", "--version", "--stage", "--plan", "--watch", "--json"],
    "status": ["CONFIG", "--set", "--json", "--version", "--watch"],
    "log": ["CONFIG", "--set", "--json"],
    "diff": ["CONFIG", "V1", "V2", "--set", "--json"],
    "forget": ["CONFIG", "--id", "--uri", "--file", "--set"],
    "vacuum": ["CONFIG", "--hours", "--dry-run", "--set"],
    "verify": ["CONFIG", "--repair", "--deep", "--set", "--json"],
    "show": ["CONFIG", "MEDIA_ID", "--set", "--version"],
    "sample": [
        *("CONFIG", "--prompt", "--size", "--video", "--continue", "--caption", "--ask", "--of", "--text", "--out"),
        *("--seed", "--top-k", "--top-p", "--temperature", "--guidance", "--stage", "--json", "--set"),
    ],
    "submit": ["CONFIG", "--on", "--phase", "--dry-run", "--again", "--set"],
    "jobs list": ["CONFIG", "--on", "--set", "--json"],
    "jobs status": ["CONFIG", "--on", "--job", "--set", "--json"],
    "jobs logs": ["CONFIG", "--on", "--job", "--follow", "--set"],
    "jobs stop": ["CONFIG", "--on", "--job", "--set"],
    "demo": ["--config", "--images", "--set"],
    "eval model": [
        *("CONFIG", "--out", "--stage", "--prompts", "--pictures", "--questions", "--features", "--n"),
        *("--seed", "--set"),
    ],
    "captioner train": ["CONFIG", "--set"],
    "captioner try": ["CONFIG", "--captioner", "--n", "--kind", "--seed", "--out", "--set"],
    "tokenizer train": ["CONFIG", "--set", "--out"],
    "tokenizer eval": ["CONFIG", "--images", "--sizes", "--out", "--folder", "--lpips", "--fid", "--set"],
    "tokenizer convert": ["SOURCE", "OUT"],
}


def commands(group, prefix: str = "") -> dict[str, list[str]]:
    found = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, f"{prefix}{name} ")
        else:
            names = [p.metavar if p.param_type_name == "argument" else p.opts[0] for p in command.params]
            found[prefix + name] = [each for each in names if each != "--help"]
            assert command.help, f"{name} has no help"
            assert all(p.help for p in command.params), f"an option of {name} has no help"
    return found


def test_the_command_line_is_this():
    assert commands(typer.main.get_command(app)) == COMMANDS


def test_every_command_is_in_the_readme():
    readme = (PROJECT / "README.md").read_text()
    missing = [name for name in COMMANDS if f"tokenmill {name}" not in readme]
    assert not missing


def test_help_ends_with_examples_of_that_command():
    assert EXAMPLES.keys() == COMMANDS.keys()
    for name, examples in EXAMPLES.items():
        assert 1 <= len(examples) <= 2
        for example in examples:
            words = shlex.split(example)
            assert example.startswith(f"tokenmill {name}")
            assert {word for word in words if word.startswith("--")} <= {*COMMANDS[name]}, example
    said = call("jobs", "logs", "--help").stdout
    assert "tokenmill jobs logs photos.yaml --follow" in said


PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *(PROJECT / "docs").glob("*.md")]


def shown_commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every `tokenmill ...` that a page shows as a line of a console."""
    lines = ((page.name, line) for page in PAGES for line in page.read_text().splitlines())
    found = [(page, line.removeprefix("$ ").split("#")[0].split()) for page, line in lines if line.startswith("$ ")]
    return [(page, words[1:]) for page, words in found if words[0] == "tokenmill"]


@pytest.mark.parametrize(("page", "words"), shown_commands())
def test_commands_that_pages_show_exist(page, words):
    name = words[0] if words[0] in COMMANDS else " ".join(words[:2])
    assert name in COMMANDS
    options = {word.split("=")[0] for word in words if word.startswith("--")}
    assert options <= {*COMMANDS[name], "--help"}
    for config in (word for word in words if word.startswith("configs/")):
        assert (PROJECT / config).is_file()


def call(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "tokenmill", *arguments], capture_output=True, text=True, timeout=120)


def test_a_mistake_is_one_message_and_exit_code_1(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"root": str(tmp_path / "root"), "sources": [{"uri": "photos"}], "curat": {}}))
    result = call("run", str(path))
    assert result.returncode == 1
    assert "mine.yaml: curat: unknown key; nearest valid key: 'curate'" in result.stderr.replace("\n", "")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "root").exists(), "work began before the config was known to be right"


def test_status_without_a_catalog_says_what_to_do(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"root": str(tmp_path / "root"), "sources": [{"uri": "photos"}]}))
    result = call("status", str(path))
    assert result.returncode == 1
    assert "tokenmill run" in result.stderr


def test_a_training_that_cannot_go_on_is_one_message(monkeypatch, capsys):
    def fails() -> None:
        raise TrainingError("step 3: the loss is nan; lower train.optimizer.lr")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert capsys.readouterr().err == "tokenmill: step 3: the loss is nan; lower train.optimizer.lr\n"


def at_a_shell(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "tokenmill"), *words]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell):
    asked = {"_TOKENMILL_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    words = {"COMP_WORDS": "tokenmill re", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "tokenmill re"}
    found = at_a_shell([], **asked, **words).stdout
    assert "redecide" in found and "report" in found and "submit" not in found


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("train CONFIG --stage ", {"first", "second"}),
        ("train CONFIG --stage s", {"second"}),
        ("captioner try CONFIG --captioner ", {"source", "mine"}),
        ("run CONFIG --phase t", {"tokenize", "train"}),
        ("train nowhere.yaml --stage ", set()),
    ],
)
def test_shells_complete_names_of_the_config(tmp_path, typed, offered):
    path = tmp_path / "mine.yaml"
    mine = {"engine": "openai", "model": "m", "resources": {"urls": ["http://127.0.0.1:9/v1"]}}
    document = {"root": "r", "sources": [{"uri": "photos"}], "caption": {"captioners": {"mine": mine}}}
    path.write_text(yaml.safe_dump(document | {"train": {"stages": {"first": {}, "second": {}}}}))
    line = f"tokenmill {typed.replace('CONFIG', str(path))}"
    number = str(len(line.split(" ")) - 1)
    done = at_a_shell([], _TOKENMILL_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=number)
    assert set(done.stdout.split()) == offered
    assert "Traceback" not in done.stderr


def test_what_is_said_at_work_is_lines_of_json_where_asked(tmp_path):
    (tmp_path / "photos").mkdir()
    config = tmp_path / "config.yaml"
    config.write_text(f"root: {tmp_path / 'root'}\nsources:\n- uri: {tmp_path / 'photos'}\n")
    done = at_a_shell(["run", str(config), "--plan", "--json"])
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and lines[0]["event"] == "message" and "Plan for" in lines[0]["text"]
    assert "Plan for" in at_a_shell(["run", str(config), "--plan"]).stdout.splitlines()[0]


def test_a_sheet_of_nothing_leaves_nothing(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"root": str(tmp_path / "root"), "sources": [{"uri": "photos"}]}))
    done = call("sheet", str(path))
    assert done.returncode == 1 and "no catalog there yet" in done.stderr
    assert not (tmp_path / "root").exists()


def test_help_is_there_at_once():
    """0.12 s on two cores; the limit leaves room for a busy machine, and none for torch, Ray or pyarrow."""
    times = []
    for _ in range(5):
        began = time.monotonic()
        assert at_a_shell(["--help"]).returncode == 0
        times.append(time.monotonic() - began)
    assert min(times) < 0.3
