"""Configs for tests of jobs."""

from pathlib import Path
from typing import Any

import yaml

from tokenmill.pipeline.config import RunConfig, load

PROJECT = Path(__file__).resolve().parents[3]
CLUSTER = PROJECT / "configs" / "cluster.yaml"
KUBERAY = ["root=s3://b/root", "sources=[{uri: s3://b/photos}]", "jobs.kuberay.image=images/tokenmill:1"]


def config(folder: Path, sets: list[str] | None = None, **document: Any) -> RunConfig:
    """One over a folder of photos."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"root": str(folder / "root"), "sources": [{"uri": "photos"}], **document}))
    return load(path, sets)
