"""Models and servers that a config names -> whether they are at hand. Nothing is downloaded or loaded."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tokenmill import storage
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.phases import Stage

_ANSWERS_WITHIN_S = 3.0


def trainings(config: RunConfig) -> list[tuple[str, Stage]]:
    """The stages of training by key, or the one training."""
    stages = config.train.stages.items()
    return [(f"train.stages.{name}", stage) for name, stage in stages] or [("train", config.train)]


def models_of(config: RunConfig) -> Iterator[tuple[str, str, bool | None]]:
    """Key, name, and whether it is here: null for one of the hub that a run would download."""
    named: dict[str, str | None] = {"curate.clip.model": config.curate.clip.model}
    if config.tokenize.model != "builtin":
        named["tokenize.model"] = config.tokenize.model
    for name in config.caption.order:
        how = config.caption.all[name]
        if how.engine in ("transformers", "vllm"):
            named[f"caption.captioners.{name}.model"] = how.model
    for key, stage in trainings(config):
        named[f"{key}.model.init_from"] = stage.model.init_from
        named[f"{key}.data.text_tokenizer"] = stage.data.text_tokenizer
    seen: set[str] = set()
    for key, model in named.items():
        if model is not None and model not in seen:
            seen.add(model)
            yield key, model, _is_here(model)


def _is_here(name: str) -> bool | None:
    if storage.is_remote(name) or Path(name).expanduser().exists():
        return storage.exists(name) if storage.is_remote(name) else True
    if name.startswith(("/", ".", "~")) or name.endswith((".yaml", ".yml", ".safetensors", ".pt")):
        return False
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    is_cached = (cache.expanduser() / f"models--{name.replace('/', '--')}").exists()
    is_offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    return True if is_cached else False if is_offline else None


def servers_of(config: RunConfig) -> Iterator[tuple[str, str, str]]:
    """Key, address, and what is wrong with it; empty where its port is open."""
    for name in config.caption.order:
        how = config.caption.all[name]
        for url in how.resources.urls if how.engine == "openai" else ():
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            try:
                with socket.create_connection((parts.hostname or "", port), _ANSWERS_WITHIN_S):
                    trouble = ""
            except OSError as error:
                trouble = error.strerror or str(error)
            yield f"caption.captioners.{name}", url, trouble
