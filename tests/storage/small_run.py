"""A run small enough to be repeated: `python small_run.py CONFIG` curates, captions and tokenizes a few scenes.

What it leaves is compared as rows, with the places that differ from root to root taken out.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import load
from tokenmill.pipeline.demo.scenes import write_corpus
from tokenmill.pipeline.demo.show import CONFIG
from tokenmill.pipeline.run.runner import run_phases

PHASES = ("curate", "caption", "tokenize")
_PER_RUN = {"run_id", "last_seen_run", "etag", "caption_etag"}


def make_corpus(folder: Path) -> Path:
    """Drawn scenes, clips and broken files in `folder`."""
    write_corpus(folder, num_images=72, num_videos=4)
    return folder


def write_config(folder: Path, corpus: str, root: str, **cluster: Any) -> Path:
    """A config of the demo's phases in small blocks and small shards: every phase makes a dozen commits and more."""
    document = yaml.safe_load(CONFIG.read_text())
    document |= {"root": root, "sources": [{"uri": corpus}]}
    document["cluster"] = {"num_cpus": 2, "commit_every_s": 0.2, "shard_rows": 4, "local_rows": 0, **cluster}
    for phase in PHASES:
        document[phase] = document.get(phase, {}) | {"resources": {"batch_rows": 4}}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def start(config: Path, **options: Any) -> subprocess.Popen:
    """The run as a process group of its own, so that nothing of it is left when it is ended."""
    command = [sys.executable, __file__, str(config)]
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def run(config: Path) -> None:
    """The run from start to end; its output is shown when it fails."""
    process = start(config)
    try:
        output, _ = process.communicate(timeout=900)
    finally:
        end(process)
    assert process.returncode == 0, output[-4000:]


def end(process: subprocess.Popen) -> None:
    """Kill what is left of the process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def contents(root: str, corpus: str) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables in a fixed order, without what differs from run to run and from place to place."""
    found = {}
    for table in Catalog(root):
        rows = table.scan().drop(sorted(_PER_RUN & set(table.schema.names))).to_pylist()
        for row in rows:
            if "uri" in row:
                assert row["uri"].startswith(corpus)
                row["uri"] = row["uri"].removeprefix(corpus)
        found[table.name] = sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))
    return found


def num_commits(root: str, *tables: str) -> int:
    """Versions of these tables so far, without the first, empty ones; one cheap request for each."""
    logs = [storage.list_names(storage.join(root, table, "_delta_log")) for table in tables]
    return sum(name.removesuffix(".json").strip("0").isdigit() for names in logs for name in names)


if __name__ == "__main__":
    run_phases(load(sys.argv[1]), PHASES, "run", Console(width=120))
