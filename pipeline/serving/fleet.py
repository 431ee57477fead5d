"""All servers of one captioner for the length of a phase, held by this process, or by actors on Ray (on_ray.py)."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tokenmill import storage
from tokenmill.pipeline.serving.server import ModelServer, ServerSpec
from tokenmill.stages.caption.captioners.config import CaptionerConfig, CaptionError

_LOOPBACK = "127.0.0.1"
_KEPT_LOGS = 20
_PREFIX = "server-"


class Held(Protocol):
    """A server, wherever it is held (pipeline/serving/server.py)."""

    def ready(self) -> str:
        """Its address, once it is well. Raises ServerError."""
        ...

    def trouble(self) -> str | None:
        """Why it is down for good; null: it is not."""
        ...

    def stop(self) -> None:
        """Let it begin to end."""
        ...

    def end(self) -> None:
        """End it, with all that it started."""
        ...


Hold = Callable[[ServerSpec], Held]


@contextmanager
def fleet(name: str, captioner: CaptionerConfig, number: int, log: str, hold: Hold) -> Iterator[list[Held]]:
    """`number` servers, all of them well; `log` is what the names of their logs begin with. Raises ServerError and
    CaptionError.
    """
    command, how, held = command_of(name, captioner), captioner.resources, list[Held]()
    try:
        for i in range(number):
            spec = ServerSpec(f"server {i} of {name}", command, f"{log}-{i}.log", how.start_timeout_s, how.restarts)
            held.append(hold(spec))
        for server in held:
            server.ready()
        yield held
    finally:
        for server in held:
            server.stop()
        for server in held:
            server.end()


def held_here(gpus_each: int) -> Hold:
    """Held by this process, on GPUs of this machine in order."""
    free = gpus_here()

    def hold(spec: ServerSpec) -> Held:
        taken = [free.pop(0) for _ in range(gpus_each)]
        seen = {"CUDA_VISIBLE_DEVICES": ",".join(taken)} if gpus_each else {}
        return ModelServer(spec._replace(environment=seen), _LOOPBACK)

    return hold


def gpus_here() -> list[str]:
    """The NVIDIA GPUs of this machine that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [each for each in given.split(",") if each.strip() and each != "-1"]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def number_of(name: str, captioner: CaptionerConfig, gpus: list[int]) -> int:
    """How many servers it gets where machines have so many GPUs. Raises CaptionError where that is none."""
    how = captioner.resources
    if how.gpus_per_server == 0:
        return how.servers or 1
    most = sum(each // how.gpus_per_server for each in gpus)
    if (how.servers or 1) > most:
        raise CaptionError(
            f"caption.captioners.{name}.resources: {how.servers or 1} servers of {how.gpus_per_server} GPUs each, and "
            f"of {sum(gpus)} GPUs on {len(gpus)} machines {most} such can be made; lower servers or gpus_per_server "
            "(0: on CPUs)"
        )
    return how.servers or most


def command_of(name: str, captioner: CaptionerConfig) -> tuple[str, ...]:
    """What is started, but for host and port. Raises CaptionError where this machine has no such program."""
    how = captioner.resources
    assert how.command is not None
    key, given = f"caption.captioners.{name}.resources.command", os.path.expanduser(how.command)
    program = shutil.which(given)
    if program is None:
        what = "no such file" if not os.path.exists(given) else "not a program that may be run"
        raise CaptionError(f"{key}: {given}: {what}; give the path of `vllm`, or of the python that has it")
    is_python = re.match(r"(python|pypy)[\d.]*$", os.path.basename(program)) is not None
    made = [program, *(["-m", "vllm.entrypoints.cli.main"] if is_python else []), "serve"]
    made += [os.path.expanduser(captioner.model), "--served-model-name", captioner.model]
    made += ["--dtype", captioner.dtype]
    if how.gpus_per_server > 1:
        made += ["--tensor-parallel-size", str(how.gpus_per_server)]
    return (*made, *how.args)


def log_of(root: str, name: str, run_id: str) -> str:
    """What the names of the logs of a captioner's servers begin with: with the root where that is a disk, else among
    temporary files. Logs of long ago go.
    """
    folder = Path(tempfile.gettempdir(), "tokenmill-logs") if storage.is_remote(root) else Path(root, "runs", "logs")
    old = sorted(folder.glob(f"{_PREFIX}*.log"), key=lambda path: path.stat().st_mtime)
    for path in old[:-_KEPT_LOGS]:
        path.unlink(missing_ok=True)
    return str(folder / f"{_PREFIX}{run_id}-{re.sub(r'[^A-Za-z0-9_.-]', '-', name)}")
