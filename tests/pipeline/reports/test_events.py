"""JSON lines for whoever collects logs: each whole, with run, phase and node; a run as a user starts it."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image
from rich.table import Table

from tokenmill.pipeline.reports.events import EventConsole
from tokenmill.pipeline.reports.progress import Progress


def test_each_line_is_a_document():
    console = EventConsole(file=io.StringIO())
    console.run = "r1"
    console.print("  [red]two[/red]\nlines  ", highlight=False)
    table = Table("a", "b")
    table.add_row("1", "ä" * 300)
    console.print(table)
    console.phase = "curate"
    console.tell(Progress("curate", "files", 3, 4, 2, {"corrupt": 1}, rate=1.23456, silent_s=0.00012))
    lines = [json.loads(line) for line in console.file.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["message", "message", "progress"]
    assert "two\nlines" in lines[0]["text"] and lines[0]["run"] == "r1" and "phase" not in lines[0]
    assert "ä" in lines[1]["text"]
    told = lines[2]
    assert (told["phase"], told["done"], told["total"], told["rejected"]) == ("curate", 3, 4, {"corrupt": 1})
    assert told["rate"] == 1.235 and "left_s" not in told and told["node"] and told["time"].endswith("Z")


def test_a_command_prints_nothing_else(tmp_path: Path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "in" / "a.png")
    config = {"root": str(tmp_path / "root"), "sources": [{"uri": str(tmp_path / "in")}]}
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "tokenmill"]
    env = {**os.environ, "TOKENMILL_LOG": "json"}
    made = subprocess.run([*command, "curate", str(tmp_path / "c.yaml")], env=env, capture_output=True, text=True)
    lines = [json.loads(line) for line in made.stdout.splitlines()]
    assert made.returncode == 0 and not made.stderr
    assert len({line["run"] for line in lines}) == 1 and any("Plan for" in line["text"] for line in lines)
    assert {line.get("phase") for line in lines} == {None, "curate"}
    failed = subprocess.run([*command, "curate", "nowhere.yaml"], env=env, capture_output=True, text=True)
    (line,) = failed.stderr.splitlines()
    assert failed.returncode == 1 and "nowhere.yaml" in json.loads(line)["text"]
