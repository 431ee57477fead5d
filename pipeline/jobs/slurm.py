"""Jobs in Slurm's queue, by its commands. What is left of a job, scripts, configs, logs and how it ended, is in one
folder, which tells of it when Slurm has forgotten it.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tokenmill import storage
from tokenmill.pipeline.jobs.job import PREFIX, Job, base_and_attempt
from tokenmill.pipeline.jobs.script import COMMENT, script
from tokenmill.pipeline.jobs.states import ALIVE, JobError, Known, State
from tokenmill.pipeline.jobs_config import OnSlurm

_COMMAND_TIMEOUT_S = 60
_LOOK_S = 1.0
_RUNNING = {"RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT"}
_QUEUED = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESIZING", "SUSPENDED"}
_SIGNALLED = ("130", "143")


class SlurmJobs:
    """Those of the user who asks, and those that the folder of `root` tells of."""

    def __init__(self, config: OnSlurm, root: str):
        if config.folder is None and storage.is_remote(root):
            raise JobError(f"jobs.slurm.folder: missing; {root} is no disk: name a folder that all nodes share")
        self._folder = Path(storage.absolute(config.folder or storage.join(root, "runs", "jobs")))

    def text(self, job: Job) -> str:
        """Config and script."""
        place = self._folder / job.name
        return f"# {place}.yaml:\n{job.config}# {place}.sbatch:\n{script(job, job.name, str(self._folder))}"

    def submit(self, job: Job, name: str, after: Known | None = None) -> str:
        """Write config and script into the folder, put the job into the queue; it waits for the end of `after`."""
        if missing := [each for each in job.secrets if each not in os.environ]:
            raise JobError(
                f"cluster.nodes.secrets: {', '.join(missing)}: not set here, so the job would lack it: set it"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{name}.sbatch"
        path.with_suffix(".yaml").write_text(job.config)
        path.write_text(script(job, name, str(self._folder)))
        dependency = [f"--dependency=afterok:{after.detail.split()[0]},singleton"] if after else []
        return f"Slurm job {_call('sbatch', '--parsable', *dependency, str(path)).strip().split(';')[0]}"

    def known(self) -> list[Known]:
        """Oldest first."""
        queue = _queue()
        told = {path.stem for path in self._folder.glob(f"{PREFIX}*.sbatch")}
        names = sorted(name for name in queue.keys() | told if base_and_attempt(name))
        return [self._known(name, queue.get(name)) for name in sorted(names, key=self._written_s)]

    def logs(self, name: str, follow: bool) -> Iterator[str]:
        """Of the script and the run; what Ray says on the nodes is in NAME.ray.log beside it."""
        path = self._folder / f"{name}.log"
        if not path.exists() and not follow:
            raise JobError(f"{path}: no log yet; `tokenmill jobs status` tells whether the job has begun")
        offset = 0
        while True:
            is_alive = follow and any(each.name == name and each.state in ALIVE for each in self.known())
            if path.exists():
                with path.open("rb") as file:
                    file.seek(offset)
                    data = file.read()
                offset += len(data)
                yield data.decode(errors="replace")
            if not is_alive:
                return
            time.sleep(_LOOK_S)

    def stop(self, name: str) -> None:
        """SIGTERM to the script, which hands it to the run."""
        for number, state, _ in [_queue()[name]] if name in _queue() else []:
            is_at_work = state in _RUNNING
            _call("scancel", *(["--batch", "--signal=TERM"] if is_at_work else []), number)

    def _known(self, name: str, queued: tuple[str, str, str] | None) -> Known:
        number, word, comment = queued or ("", "", "")
        phases, root = _parts(comment or self._comment(name))
        ended = self._folder / f"{name}.ended"
        if word in _RUNNING | _QUEUED and not (ended.exists() and word == "COMPLETING"):
            return Known(name, "running" if word in _RUNNING else "queued", root, phases, f"{number} {word}")
        if ended.exists():
            number, code = (ended.read_text().split() + ["", ""])[:2]
            state: State = "succeeded" if code == "0" else "stopped" if code in _SIGNALLED else "failed"
            return Known(name, state, root, phases, f"{number} exit code {code}".strip())
        is_failure = word and not word.startswith("CANCELLED")
        said = f"{number} {word}" if word else "it left Slurm's queue without an end of its own"
        return Known(name, "failed" if is_failure else "stopped", root, phases, said)

    def _written_s(self, name: str) -> float:
        path = self._folder / f"{name}.sbatch"
        return path.stat().st_mtime if path.exists() else 0.0

    def _comment(self, name: str) -> str:
        path = self._folder / f"{name}.sbatch"
        lines = path.read_text().splitlines() if path.exists() else []
        found = next((line for line in lines if line.startswith("#SBATCH --comment=")), "")
        return found.partition("=")[2].strip('"')


def _parts(comment: str) -> tuple[str, str]:
    """Phases and root."""
    words, slash, rest = comment.removeprefix(COMMENT).strip().partition(" /")
    phases, _, uri = words.partition(" s3://")
    return (words, f"/{rest}") if slash and not uri else (phases, f"s3://{uri}{slash}{rest}" if uri else "")


def _queue() -> dict[str, tuple[str, str, str]]:
    """Number, state and comment of the user's jobs by name; the newest of each name."""
    said = _call("squeue", "--me", "--noheader", "--states=all", "--format=%j|%i|%T|%k", "--sort=i")
    rows = [line.split("|", 3) for line in said.splitlines() if line.startswith(PREFIX)]
    return {name: (number, state, comment) for name, number, state, comment in rows}


def _call(program: str, *arguments: str) -> str:
    if shutil.which(program) is None:
        raise JobError(f"{program} is not installed here: run this on a machine from which Slurm takes jobs")
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise JobError(f"{program}: no answer in {_COMMAND_TIMEOUT_S} s; look at the controller (`sinfo`)") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[:500]
        raise JobError(f"Slurm refuses: {said}; correct that in jobs.slurm or jobs.shapes, then submit again")
    return done.stdout
