"""This machine, and what a config asks of it: python, packages, processor, memory, disks, GPUs, Ray.

Nothing is changed, and nothing is started.
"""

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from tokenmill import storage
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.start.wanted import Finding, State, trainings
from tokenmill.storage import cpu

_SHOWN = ("torch", "torchvision", "transformers", "ray", "pyarrow", "deltalake", "duckdb", "av", "open-clip-torch")
_LEAST_GB, _LEAST_SHM_GB, _LEAST_DISK_GB = 8, 2, 20
_EMPTY_GB = 1
_ANSWERS_WITHIN_S = 3.0


def examine_machine(config: RunConfig | None) -> Iterator[Finding]:
    """What there is to say of the machine; of what a config asks for where one is given."""
    yield from _python()
    yield from _processor()
    yield from _memory()
    yield from _disks(config)
    yield from _gpu(config)
    yield from _ray(config)
    if config is not None:
        yield from _extras(config)


def _python() -> Iterator[Finding]:
    is_old = sys.version_info < (3, 11)
    remedy = "make an environment of 3.11 or newer" if is_old else ""
    yield Finding("python", "fails" if is_old else "ok", platform.python_version(), remedy)
    lacking = [name for name in _required() if _version(name) is None]
    detail = ", ".join(f"{name} {found}" for name in _SHOWN if (found := _version(name)))
    remedy = f"pip install {' '.join(lacking)}" if lacking else ""
    missing = f"; not installed: {', '.join(lacking)}" if lacking else ""
    yield Finding("packages", "fails" if lacking else "ok", detail + missing, remedy)
    try:
        import torchvision.ops  # noqa: F401 - its operators do not load beside another build of torch
    except (ImportError, RuntimeError, OSError) as error:
        remedy = "install torch and torchvision together, both for CPU or both for CUDA"
        yield Finding("torchvision", "fails", str(error).splitlines()[0], remedy)


def _required() -> list[str]:
    """What tokenmill depends on without extras, as it was installed."""
    with suppress(metadata.PackageNotFoundError):
        lines = metadata.requires("tokenmill") or []
        return [re.split(r"[\s\[;<>=!~(]", line, maxsplit=1)[0] for line in lines if "extra ==" not in line]
    return list(_SHOWN)  # run from a folder that was not installed


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> Iterator[Finding]:
    yield Finding("processor", "ok", cpu.describe())
    if not cpu.multiplies_bf16():
        yield Finding("bfloat16", "look", "this CPU has no units for it", "nothing: dtype auto takes float32 here")


def _memory() -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup_bytes()
    most = min(memory, limit or memory)
    of = "" if limit is None or limit >= memory else f" of {memory / 1e9:.0f}, by this container's limit"
    few = "fewer and smaller workers: cluster.num_cpus, resources.batch_rows" if most / 1e9 < _LEAST_GB else ""
    yield Finding("memory", "look" if few else "ok", f"{most / 1e9:.0f} GB{of}", few)
    if os.path.isdir("/dev/shm"):
        shm = shutil.disk_usage("/dev/shm").total / 1e9
        small = "Ray puts rows to /tmp, slowly; in a container give --shm-size=8g" if shm < _LEAST_SHM_GB else ""
        yield Finding("/dev/shm", "look" if small else "ok", f"{shm:.1f} GB", small)


def _cgroup_bytes() -> int | None:
    """The container's limit on memory; null where there is none."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            return int(Path(path).read_text())
    return None


def _disks(config: RunConfig | None) -> Iterator[Finding]:
    yield _disk("scratch space", tempfile.gettempdir(), "set TMPDIR to a larger disk: videos are unpacked there")
    if config is not None and not storage.is_remote(config.root):
        there = Path(storage.absolute(config.root))
        while not there.is_dir() and there != there.parent:
            there = there.parent
        yield _disk("root's disk", str(there), "give a root on a larger disk: tables and checkpoints are kept there")


def _disk(what: str, folder: str, remedy: str) -> Finding:
    free_gb = shutil.disk_usage(folder).free / 1e9
    state: State = "fails" if free_gb < _EMPTY_GB else "look" if free_gb < _LEAST_DISK_GB else "ok"
    return Finding(what, state, f"{free_gb:.0f} GB free in {folder}", "" if state == "ok" else remedy)


def _gpu(config: RunConfig | None) -> Iterator[Finding]:
    import torch

    wanted = [] if config is None else list(_wants_gpu(config))
    asked = f"; {', '.join(wanted)} ask for them" if wanted else ""
    driver = _driver()
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        yield Finding("GPU", "ok", f"{', '.join(names)}; CUDA {torch.version.cuda}, driver {driver or 'unknown'}")
    elif driver:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for CPUs"
        remedy = "install torch and torchvision for the CUDA of this driver (nvidia-smi names it)"
        detail = f"a driver, {driver}, and no GPU that torch can use: {built}{asked}"
        yield Finding("GPU", "fails" if wanted else "look", detail, remedy)
    elif not wanted:
        yield Finding("GPU", "ok", "none, and none is asked for")
    elif config is not None and (config.cluster.address or config.jobs.on):
        yield Finding("GPU", "look", f"none here{asked}", "the cluster must have them")
    else:
        remedy = "set them to 0 and false, or run where nvidia-smi shows a GPU"
        yield Finding("GPU", "fails", f"none here{asked}", remedy)


def _driver() -> str:
    """The version of NVIDIA's driver; empty without one."""
    if (smi := shutil.which("nvidia-smi")) is None:
        return ""
    ask = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[0].strip()
    return ""


def _wants_gpu(config: RunConfig) -> Iterator[str]:
    if config.curate.clip_resources.num_gpus:
        yield "curate.clip_resources.num_gpus"
    for name in config.caption.order:
        if config.caption.pool(name).num_gpus:
            yield f"caption.captioners.{name}.resources.num_gpus"
    if config.tokenize.resources.num_gpus:
        yield "tokenize.resources.num_gpus"
    yield from (f"{name}.resources.use_gpu" for name, stage in trainings(config) if stage.resources.use_gpu)


def _ray(config: RunConfig | None) -> Iterator[Finding]:
    address = None if config is None else config.cluster.address
    if address is None:
        cpus = (config.cluster.num_cpus if config else None) or os.cpu_count()
        yield Finding("Ray", "ok", f"{_version('ray')}; a large run starts it here, on {cpus} CPUs")
        return
    if address == "auto":
        from ray._private.utils import read_ray_address

        address = os.environ.get("RAY_ADDRESS") or read_ray_address()
        if address is None:
            yield Finding("Ray", "fails", "cluster.address: auto: no Ray runs on this machine", "ray start --head")
            return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWERS_WITHIN_S).close()
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        remedy = "start the cluster, mend cluster.address (HOST:PORT), or set it to null for a Ray of its own"
        yield Finding("Ray", "fails", f"cluster.address: {address}: {said}", remedy)
    else:
        yield Finding("Ray", "ok", f"{_version('ray')}; {address} answers")


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
            yield Finding(
                f"tokenmill[{extra}]", "fails", f"{module} is not installed", f"pip install tokenmill[{extra}]"
            )
    if config.jobs.on == "slurm" and shutil.which("sbatch") is None:
        remedy = "`tokenmill submit` needs it: submit from a login node"
        yield Finding("jobs.on", "look", "slurm: no sbatch on this machine", remedy)
