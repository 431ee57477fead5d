"""CONTRIBUTING.md's steps are carried out on a copy of the project: the new score is measured and judged."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
PARTS = ("storage", "tokenizer", "stages", "training", "pipeline", "configs", "__init__.py")
STEP = re.compile(r"<!-- (\S+), before `([^`]+)` -->\n```diff\n\+(.*?)```", re.DOTALL)
RUN = """
import sys, tokenmill
from tokenmill.pipeline.config import RunConfig
rules = {"not_black": "black < 0.9"}
config = RunConfig.model_validate({"root": sys.argv[1], "sources": [{"uri": sys.argv[2]}],
                                   "curate": {"decide": {"image_rules": rules}}})
tokenmill.run(config, ["curate"], quiet=True)
media = tokenmill.open(config).table("media", ["black", "reject_reason"]).sort_by("black")
print(tokenmill.__file__, media.to_pydict())
"""


def test_a_score_added_as_the_page_says_is_measured_and_judged(tmp_path):
    copy = tmp_path / "copy" / "tokenmill"
    copy.mkdir(parents=True)
    for name in PARTS:
        (shutil.copytree if (PROJECT / name).is_dir() else shutil.copy)(PROJECT / name, copy / name)
    steps = STEP.findall((PROJECT / "CONTRIBUTING.md").read_text())
    assert len(steps) == 3
    for file, line, added in steps:
        text = (copy / file).read_text()
        assert text.count(f"\n{line}") == 1, f"{file}: {line}"
        (copy / file).write_text(text.replace(f"\n{line}", f"\n{added}{line}"))
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, value in (("light", 200), ("dark", 3)):
        Image.fromarray(np.full((64, 64, 3), value, np.uint8)).save(photos / f"{name}.png")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "copy")}
    command = [sys.executable, "-c", RUN, str(tmp_path / "root"), str(photos)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(" ", 1) == [
        str(copy / "__init__.py"),
        "{'black': [0.0, 1.0], 'reject_reason': [None, 'not_black']}\n",
    ]
