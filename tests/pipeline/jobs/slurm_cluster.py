"""A real Slurm of a few nodes on this machine, by the script that stands beside the checkout. Each node has processes,
a /tmp and an address of its own, and dies when it is told to.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from disturbances import processes

PROJECT = Path(__file__).resolve().parents[3]
SCRIPT = PROJECT.parent / "shared" / "slurm" / "slurm-up"
PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged", "ip", "nsenter")
PACKAGES = "slurm-wlm munge iproute2"


def why_not() -> str | None:
    """What is missing here for a Slurm."""
    if not SCRIPT.is_file():
        return f"not there: {SCRIPT}"
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"not installed: {', '.join(missing)}; apt-get install --no-install-recommends {PACKAGES}"
    if os.getuid() or subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True).returncode:
        return "no right to make network namespaces, in which the nodes are"
    if str(PROJECT).startswith("/tmp/"):
        return f"{PROJECT} is below /tmp, which each node has for itself"
    return None


class Slurm:
    """Use its folder for what all nodes see."""

    def __init__(self, folder: Path):
        self.folder = folder

    def kill(self, node: int) -> None:
        self._call("--kill", str(node))

    def boot(self, node: int) -> None:
        self._call("--boot", str(node))

    def begin_now(self, job: str) -> None:
        """What was put into the queue again waits two minutes otherwise."""
        subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now"], check=True, timeout=60)

    def commands(self, node: int) -> list[str]:
        """Command lines of what runs on it."""
        pid = int((self.folder / "slurm" / f"node{node}.pid").read_text())
        return [processes.command(each) for each in processes.tree(pid)]

    @property
    def address(self) -> str:
        """Of this machine, as its nodes reach it."""
        return re.search(r"^SlurmctldHost=.*\((.*)\)$", self._conf.read_text(), re.MULTILINE)[1]

    def let_preempt(self, grace_s: int) -> None:
        """A partition `urgent`, whose jobs put those of the other one into the queue again after so long."""
        conf, pid = self._conf, self.folder / "slurm" / "ctld.pid"
        lines = [line for line in conf.read_text().splitlines() if not line.startswith("PartitionName=")]
        lines += ["PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE"]
        lines += [f"PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime={grace_s}"]
        lines += ["PartitionName=urgent Nodes=ALL PriorityTier=2"]
        conf.write_text("\n".join(lines) + "\n")
        os.kill(int(pid.read_text()), signal.SIGTERM)
        wait_for(lambda: not pid.exists(), 30)
        subprocess.run(["slurmctld", "-f", conf], check=True, timeout=60, stdout=subprocess.DEVNULL)
        ready = ["sinfo", "--noheader", "--states=idle", "--partition=urgent", "--format=%D"]
        wait_for(lambda: subprocess.run(ready, capture_output=True, text=True).stdout.strip() == "2", 60)

    @property
    def _conf(self) -> Path:
        return self.folder / "slurm" / "slurm.conf"

    def _call(self, *words: str) -> None:
        subprocess.run([SCRIPT, self.folder / "slurm", *words], check=True, timeout=60, stdout=subprocess.DEVNULL)


@contextmanager
def slurm(num_nodes: int) -> Iterator[Slurm]:
    """Up for the block; SLURM_CONF leads to it."""
    if reason := why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="tokenmill-slurm-", dir="/var/tmp"))
    folder.chmod(0o755)
    before = os.environ.get("SLURM_CONF")
    cluster = Slurm(folder)
    try:
        done = subprocess.run(
            [SCRIPT, folder / "slurm", str(num_nodes)], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr + (folder / "slurm" / "up.log").read_text()[-2000:]
        os.environ["SLURM_CONF"] = str(folder / "slurm" / "slurm.conf")
        yield cluster
    finally:
        subprocess.run(["scancel", "--me"], capture_output=True, timeout=60)
        cluster._call("--down")
        os.environ.pop("SLURM_CONF", None)
        if before is not None:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(what: Callable[[], object], timeout_s: float) -> object:
    """What it gives as soon as that is true. Raises AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.5)
    return found
