"""`tokenmill doctor`: what this machine and a config's places have, and what they lack, each with its remedy.

Nothing is downloaded, no model is loaded, and of a root one object is put and taken away again.
"""

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Literal

from rich.console import Console

from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.reports.terminal import shown, table
from tokenmill.pipeline.start.places import look_at_places
from tokenmill.pipeline.start.wanted import models_of, servers_of, trainings
from tokenmill.storage import cpu

State = Literal["ok", "look", "fails"]  # `look`: works, but not as well, or later
_STYLE = {"ok": "green", "look": "yellow", "fails": "red"}
_PACKAGES = ("torch", "torchvision", "transformers", "ray", "pyarrow", "deltalake", "duckdb", "av", "open-clip-torch")
_LEAST_GB, _LEAST_SHM_GB, _LEAST_DISK_GB = 8, 2, 20


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `remedy` where it is not as it should be."""

    what: str
    state: State
    detail: str
    remedy: str = ""


def examine(config: RunConfig | None) -> Iterator[Finding]:
    """What there is to say of the machine, and of what a config asks for."""
    yield from _python()
    yield from _machine(config)
    yield from _gpu(config)
    if config is not None:
        yield from _extras(config)
        for what, detail, remedy in look_at_places(config):
            yield Finding(what, "fails" if remedy else "ok", detail, remedy)
        for what, name, is_here in models_of(config):
            if is_here is None:
                remedy = "the first run downloads it; or give a folder"
                yield Finding(what, "look", f"{name}: a name on the hub", remedy)
            else:
                remedy = "" if is_here else "give a hub name, or a folder that save_pretrained() wrote"
                yield Finding(what, "ok" if is_here else "fails", name, remedy)
        for what, url, trouble in servers_of(config):
            remedy = "start the server, or mend resources.urls" if trouble else ""
            yield Finding(what, "fails" if trouble else "ok", f"{url}: {trouble or 'answers'}", remedy)


def doctor(config: RunConfig | None, as_json: bool, console: Console) -> bool:
    """Say it all; whether nothing fails."""
    found = list(examine(config))
    is_well = not any(each.state == "fails" for each in found)
    if as_json:
        console.print_json(json.dumps({"well": is_well, "findings": [asdict(each) for each in found]}))
        return is_well
    made = table("What is here", "what", "", "found", "what to do")
    for each in found:
        state = f"[{_STYLE[each.state]}]{each.state}[/]"
        made.add_row(shown(each.what), state, shown(each.detail, 300), shown(each.remedy, 300))
    console.print(made)
    missing = sum(each.state == "fails" for each in found)
    console.print("All there." if is_well else f"{missing} to mend before a run.", highlight=False)
    return is_well


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    is_old = sys.version_info < (3, 11)
    yield Finding(
        "python", "fails" if is_old else "ok", version, "make an environment of 3.11 or newer" if is_old else ""
    )
    known: dict[str, str | None] = {name: _version(name) for name in _PACKAGES}
    lacking = [name for name, found in known.items() if found is None]
    detail = ", ".join(f"{name} {found}" for name, found in known.items() if found)
    remedy = f"pip install {' '.join(lacking)}" if lacking else ""
    yield Finding("packages", "fails" if lacking else "ok", detail, remedy)
    try:
        import torchvision.ops  # noqa: F401 - its operators do not load beside another build of torch
    except (ImportError, RuntimeError, OSError) as error:
        remedy = "install torch and torchvision together, both for CPU or both for CUDA"
        yield Finding("torchvision", "fails", str(error).splitlines()[0], remedy)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _machine(config: RunConfig | None) -> Iterator[Finding]:
    yield Finding("processor", "ok", cpu.describe())
    if not cpu.multiplies_bf16():
        yield Finding("bfloat16", "look", "this CPU has no units for it", "nothing: dtype auto takes float32 here")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    few = "fewer and smaller workers: cluster.num_cpus, resources.batch_rows" if memory < _LEAST_GB else ""
    yield Finding("memory", "look" if few else "ok", f"{memory:.0f} GB", few)
    if os.path.isdir("/dev/shm"):
        shm = shutil.disk_usage("/dev/shm").total / 1e9
        small = "Ray puts rows to /tmp, slowly; in a container give --shm-size=8g" if shm < _LEAST_SHM_GB else ""
        yield Finding("/dev/shm", "look" if small else "ok", f"{shm:.1f} GB", small)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free / 1e9
    tight = "set TMPDIR to a larger disk: videos and downloads are unpacked there" if free < _LEAST_DISK_GB else ""
    yield Finding("scratch space", "look" if tight else "ok", f"{free:.0f} GB free in {folder}", tight)


def _gpu(config: RunConfig | None) -> Iterator[Finding]:
    import torch

    wanted = [] if config is None else list(_wants_gpu(config))
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        yield Finding("GPU", "ok", f"{', '.join(names)}; CUDA {torch.version.cuda}")
    elif not wanted:
        yield Finding("GPU", "ok", "none, and none is asked for")
    elif config is not None and (config.cluster.address or config.jobs.on):
        yield Finding("GPU", "look", f"none here; {', '.join(wanted)} ask for them", "the cluster must have them")
    else:
        remedy = "set them to 0 and false, or run where nvidia-smi shows a GPU"
        yield Finding("GPU", "fails", f"none here; {', '.join(wanted)} ask for them", remedy)


def _wants_gpu(config: RunConfig) -> Iterator[str]:
    if config.curate.clip_resources.num_gpus:
        yield "curate.clip_resources.num_gpus"
    if config.tokenize.resources.num_gpus:
        yield "tokenize.resources.num_gpus"
    yield from (f"{name}.resources.use_gpu" for name, stage in trainings(config) if stage.resources.use_gpu)


def _extras(config: RunConfig) -> Iterator[Finding]:
    stages = [stage for _, stage in trainings(config)]
    wanted = {
        "lora": ("peft", config.captioner.train.lora or any(stage.model.lora for stage in stages)),
        "wandb": ("wandb", any("wandb" in stage.monitor.track for stage in stages)),
        "mlflow": ("mlflow", any("mlflow" in stage.monitor.track for stage in stages)),
        "cluster": ("kubernetes", config.jobs.on == "kuberay"),
    }
    for extra, (module, is_wanted) in wanted.items():
        if is_wanted and find_spec(module) is None:
            remedy = f"pip install tokenmill[{extra}]"
            yield Finding(f"tokenmill[{extra}]", "fails", f"{module} is not installed", remedy)
