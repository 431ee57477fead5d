"""Models and servers that a config names -> whether they are at hand. Nothing is downloaded or loaded."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenmill import storage
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.phases import Stage
from tokenmill.pipeline.serving.asked import state_of

State = Literal["ok", "look", "fails"]  # `look`: works, but not as well, or later
_HEADS = ("aesthetic_head", "watermark_head", "nsfw_head")
_IS_THERE = ("answers 401", "answers 403")  # doctor sends no key


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `remedy` where it is not as it should be."""

    what: str
    state: State
    detail: str
    remedy: str = ""


def trainings(config: RunConfig) -> list[tuple[str, Stage]]:
    """The stages of training by key, or the one training."""
    stages = config.train.stages.items()
    return [(f"train.stages.{name}", stage) for name, stage in stages] or [("train", config.train)]


def models_of(config: RunConfig) -> Iterator[Finding]:
    """Each model that a run would open: here, on the hub, or nowhere."""
    clip = config.curate.clip
    named: dict[str, str | None] = {"curate.clip.model": clip.model}
    named |= {f"curate.clip.{head}": getattr(clip, head) for head in _HEADS}
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
            yield _model(key, model)


def _model(key: str, name: str) -> Finding:
    if storage.is_remote(name) or Path(name).expanduser().exists():
        is_here = not storage.is_remote(name) or storage.exists(name)
        return Finding(key, "ok" if is_here else "fails", name, "" if is_here else "mend the address, or copy it there")
    if name.startswith(("/", ".", "~")) or name.endswith((".yaml", ".yml", ".safetensors", ".pt")):
        remedy = "give a hub name, or a folder that save_pretrained() wrote"
        if key.endswith("_head"):
            remedy = "give the file that `tokenmill convert-head` wrote"
        return Finding(key, "fails", f"{name}: not there", remedy)
    if key == "tokenize.model" and "/" not in name:
        return Finding(key, "fails", f"{name}: no such folder", "give a hub name, a folder, or builtin")
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    snapshots = cache.expanduser() / f"models--{name.removeprefix('hf-hub:').replace('/', '--')}" / "snapshots"
    if snapshots.is_dir() and any(snapshots.iterdir()):
        return Finding(key, "ok", f"{name}: in the hub's cache")
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return Finding(
            key, "fails", f"{name}: not in the hub's cache, and HF_HUB_OFFLINE is set", "download it first, or unset it"
        )
    return Finding(key, "look", f"{name}: a name on the hub", "the first run downloads it; or give a folder")


def captioners_of(config: RunConfig) -> Iterator[Finding]:
    """Servers that answer for captioners in use, the variables of their keys, the commands that start them."""
    for name in config.caption.order:
        one, key = config.caption.all[name], f"caption.captioners.{name}"
        how = one.resources
        if how.key_variable is not None and not os.environ.get(how.key_variable):
            remedy = f"export {how.key_variable}=..., the key of your server"
            yield Finding(f"{key}.resources.key_variable", "fails", f"no {how.key_variable} in the environment", remedy)
        for url in how.urls:
            yield _server(key, url)
        if one.engine == "vllm" and how.command is not None:
            is_here = shutil.which(os.path.expanduser(how.command)) is not None
            detail = f"{how.command}: {'is here' if is_here else 'no such program'}"
            remedy = "" if is_here else "install vllm in an environment of its own, and give the path of its `vllm`"
            yield Finding(f"{key}.resources.command", "ok" if is_here else "fails", detail, remedy)


def _server(key: str, url: str) -> Finding:
    state = state_of(url)
    if state.startswith("does not"):
        return Finding(key, "fails", f"{url}: {state}", "start the server, or mend resources.urls")
    if state.startswith("answers ") and state[8:].isdigit() and state not in _IS_THERE:
        remedy = "most servers end in /v1: see whether URL/models lists models"
        return Finding(key, "look", f"{url}/models: {state}", remedy)
    return Finding(key, "ok", f"{url}: {state}")
