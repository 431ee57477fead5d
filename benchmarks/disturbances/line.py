"""The whole line in a small way: a corpus of drawn scenes, its config, how far a run of it is, and its training judged
by what it left.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.demo.show import CONFIG
from tokenmill.pipeline.plan.training import train_jobs
from tokenmill.storage.run_log import FILE_NAME, Record, read_log
from tokenmill.training.data.plan import sequence_tokens
from tokenmill.training.job import PLAN, TrainJob
from tokenmill.training.run.prepare import load_prepared

TABLES = {"curate": "media", "caption": "captions", "tokenize": "tokens"}
PHASES = (*TABLES, "train")
_MODEL = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "intermediate_size": 128}


def write_config(
    path: Path, corpus: Path | str, root: Path | str, epochs: int, every_steps: int, **cluster: Any
) -> None:
    """The demo's phases in small blocks and shards, and a small training of two workers with dropout."""
    document = yaml.safe_load(CONFIG.read_text())
    del document["captioner"]
    document |= {"root": str(root), "sources": [{"uri": str(corpus)}]}
    document["cluster"] = {"commit_every_s": 0.5, "shard_rows": 8, "local_rows": 0, **cluster}
    for phase in TABLES:
        document[phase] = document.get(phase, {}) | {"resources": {"batch_rows": 4}}
    train = document["train"]
    train["model"] |= _MODEL | {"dropout": 0.1}
    train["data"] |= {"pack_tokens": 512}
    train["optimizer"] = {"epochs": epochs, "lr": 0.003, "warmup_steps": 20}
    train["resources"] = {"num_workers": 2, "threads": 1, "checkpoint_every_steps": every_steps}
    path.write_text(yaml.safe_dump(document))


Position = tuple[int, int]
"""The number of a phase, and its rows committed or steps done."""


def position(root: Path) -> Position:
    """How far a run is: the last phase of which something stands in the root."""
    for log in root.glob(f"training/*/{FILE_NAME}"):
        if records := read_log(str(log.parent)):
            return len(TABLES), max(record["step"] for record in records)
    for number, table in reversed(list(enumerate(TABLES.values()))):
        if num_rows := count(root, table):
            return number, num_rows
    return 0, 0


def num_steps(root: Path) -> int:
    """Of the training that has begun."""
    [plan] = root.glob(f"training/*/{PLAN}")
    return json.loads(plan.read_text())["num_steps"]


def count(root: Path, table: str) -> int:
    """Its rows; of one that is not there yet, none."""
    if not (root / table / "_delta_log").is_dir():
        return 0
    try:
        return getattr(Catalog(str(root)), table).count()
    except (CatalogError, FileNotFoundError):  # just now compacted
        return 0


def log_of(config: RunConfig) -> tuple[TrainJob, list[Record]]:
    """The training of the tokens that there are, and what it logged."""
    [job] = train_jobs(config, Catalog(config.root, config.version))
    return job, read_log(job.run_uri)


def wrong_in_log(config: RunConfig) -> list[str]:
    """Where a training did not see each document once an epoch: its plan has each as often, and its log each step once
    with the tokens that the plan has there.
    """
    job, log = log_of(config)
    ready = load_prepared(job)
    plan, epochs = ready.plan, job.config.optimizer.epochs
    told = []
    times = np.bincount(plan.documents, minlength=len(ready.index))
    if not (times == epochs).all():
        told.append(f"the plan has documents {times.min()} to {times.max()} times in {epochs} epochs")
    steps = [record["step"] for record in log]
    if steps != list(range(1, plan.num_steps + 1)):
        told.append(f"the log has {len(steps)} lines, {len(set(steps))} steps of {plan.num_steps}")
        return told
    lengths = sequence_tokens(ready.index, plan.documents, plan.is_null_caption)
    ends = plan.starts[np.minimum(np.arange(plan.num_steps + 1) * plan.batch_packs, plan.num_packs)]
    tokens = [int(lengths[start:end].sum()) for start, end in zip(ends[:-1], ends[1:], strict=True)]
    others = [record["step"] for record, planned in zip(log, tokens, strict=True) if record["tokens"] != planned]
    if others:
        told.append(f"steps {others[:5]} were made of other documents than the plan's")
    return told
