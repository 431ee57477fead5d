"""Random machines die while the whole line runs on a cluster, and it is the line that nobody disturbed.

    python benchmarks/node_losses.py [--losses 20] [--seed 0] [--images 600] [--epochs 10]

Drawn scenes are curated, captioned, tokenized and trained on (two workers, a checkpoint each 50 steps) by `tokenmill
run` on a Ray cluster of a head without CPUs, where the driver is, and three machines of one CPU. Drawn from the seed,
at a share of the work of each phase,

- a machine dies (kill -9 of its raylet and all below it), or two at once; as many come up to eight seconds later;
- the driver dies, and the same command is begun again, as a scheduler would;
- the head dies and with it all machines and the driver; the same command is begun again on a new cluster.

Nobody does anything else. Then all rows of all tables are compared with those of an undisturbed run of one machine,
the log of the training with its plan and, line by line, with an undisturbed training of the same shards by as many
workers, and a picture is drawn. `seconds lost`: in a training those until it is further than it was, in other phases
the longest without a new row until the next loss. Exit code 1 when something differs, when a command ended by itself
other than with success, when a loss in a training with its workers or its driver cost more than a checkpoint's interval
and 60 s, or when processes are left.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from disturbances import line, processes, rows
from disturbances.line import PHASES, TABLES, Position
from disturbances.machines import VARIABLES, Machines
from disturbances.services import COMMAND
from rich.console import Console
from rich.table import Table

from tokenmill import plan
from tokenmill.pipeline.config import load
from tokenmill.pipeline.demo.scenes import write_corpus
from tokenmill.pipeline.reports.terminal import table
from tokenmill.storage import cpu

MARK = "TOKENMILL_NODE_LOSSES"
NUM_NODES, EVERY_STEPS, ALLOWED_S = 3, 50, 60.0
PHASE_WEIGHTS = (5, 3, 5, 7)
KINDS = {"a machine": 12, "two machines": 2, "the driver": 3, "the head": 3}
COMES_S, BEGINS_S = (1.0, 8.0), (0.5, 3.0)
TAKES_EFFECT_S = 3.0  # of a training: what was logged until then is seen
LOOK_S = 0.1
LIMIT_S = 900.0  # without progress


@dataclass
class Loss:
    """What is to die at which share of a phase, and what came of it."""

    at: tuple[int, float]  # number of the phase, share of its work
    what: str
    phase: str = ""  # where the run was indeed
    reached: Position = (0, 0)
    num_workers: int = 0  # of stages or of the training, which died
    at_s: float = 0.0
    lost_s: float | None = None

    @property
    def counts(self) -> bool:
        """Whether a training lost something by it."""
        return self.phase == "train" and (self.num_workers > 0 or self.what == "the driver")


def draw(num: int, chance: random.Random) -> list[Loss]:
    """In the order of the run; each phase has one."""
    phases = list(range(len(PHASES))) + chance.choices(range(len(PHASES)), PHASE_WEIGHTS, k=max(0, num - len(PHASES)))
    kinds = chance.choices(list(KINDS), list(KINDS.values()), k=num)
    places = sorted((phase, chance.uniform(0.02, 0.9)) for phase in phases[:num])
    return [Loss(at, what) for at, what in zip(places, kinds, strict=True)]


class Disturbed:
    """The run that loses machines."""

    def __init__(self, config: Path, root: Path, work: Path, chance: random.Random, totals: list[int]):
        self._config, self._root, self._work, self._chance, self._totals = config, root, work, chance, totals
        self.offences: list[str] = []
        self.num_starts = 0
        self._seen: list[tuple[float, Position]] = []  # when it was first as far
        self._machines = Machines(chance, NUM_NODES, head_cpus=0)
        self._coming: list[float] = []  # when machines come
        self._driver = self._start()

    def end(self) -> None:
        with suppress(ProcessLookupError):
            self._driver.kill()
        self._driver.wait()
        self._machines.lose_all()

    def run(self, losses: list[Loss], told) -> None:
        """All of the losses, and to the end."""
        for loss in losses:
            self._until(lambda at, loss=loss: self._is_due(loss, at))
            if self._driver.poll() == 0:
                self.offences.append(f"the run was over before {loss.what} could die in {PHASES[loss.at[0]]}")
                return
            self._lose(loss)
            told(loss)
        self._until(lambda _: False)
        for loss, until_s in zip(losses, [*(loss.at_s for loss in losses[1:]), float("inf")], strict=True):
            if loss.phase in TABLES:
                loss.lost_s = self._silence(loss, until_s)

    def _silence(self, loss: Loss, until_s: float) -> float:
        """The longest after a loss, in its phase, or until the next one begins."""
        after = [(at_s, at) for at_s, at in self._seen if loss.at_s < at_s and at > loss.reached]
        times = [at_s for at_s, at in after if at[0] == loss.reached[0] and at_s < until_s] or [after[0][0]]
        return max(b - a for a, b in pairwise([loss.at_s, *times]))

    def _is_due(self, loss: Loss, at: Position) -> bool:
        (phase, share), (now, done) = loss.at, at
        if now != phase:
            return now > phase
        return done >= share * (self._totals[phase] if phase < len(TABLES) else line.num_steps(self._root))

    def _until(self, is_reached) -> Position:
        """Where the run is once that is so, or once it is over. What is due comes meanwhile."""
        since = time.monotonic()
        while True:
            self._come()
            code, at = self._driver.poll(), line.position(self._root)
            if not self._seen or at > self._seen[-1][1]:
                self._seen.append((time.monotonic(), at))
                since = time.monotonic()
            if is_reached(at) or code == 0:
                return at
            if code is not None:
                self.offences.append(f"a command ended with {code}: {self._said()}")
                self._driver = self._start()
            if time.monotonic() - since > LIMIT_S:
                raise SystemExit(f"no progress at {at} for {LIMIT_S:g} s: {self._said()}")
            time.sleep(LOOK_S)

    def _come(self) -> None:
        due = [at_s for at_s in self._coming if at_s <= time.monotonic()]
        for at_s in due:
            self._coming.remove(at_s)
            self._machines.add_node()

    def _lose(self, loss: Loss) -> None:
        loss.at_s = time.monotonic()
        if loss.what == "the driver":
            self._kill_driver()
        elif loss.what == "the head":
            self._kill_driver()
            died = self._machines.lose_all()
            self._coming = []
            self._machines = Machines(self._chance, NUM_NODES, head_cpus=0)
        else:
            num = min(2 if loss.what == "two machines" else 1, len(self._machines.cluster.worker_nodes))
            died = self._machines.lose_nodes(num)
            self._coming += [time.monotonic() + self._chance.uniform(*COMES_S) for _ in range(num)]
        if loss.what != "the driver":
            loss.num_workers = sum("MapWorker" in each or "RayTrainWorker" in each for each in died)
        reached = line.position(self._root)
        loss.phase = PHASES[reached[0]]
        if self._driver.poll() is not None:
            time.sleep(self._chance.uniform(*BEGINS_S))
            self._driver = self._start()
        while loss.phase == "train" and time.monotonic() - loss.at_s < TAKES_EFFECT_S:
            self._come()
            reached = max(reached, line.position(self._root))
            time.sleep(LOOK_S)
        loss.reached = reached
        self._until(lambda at: at > reached)
        loss.lost_s = time.monotonic() - loss.at_s

    def _kill_driver(self) -> None:
        """It alone: its workers are to notice."""
        if self._driver.poll() is None:
            os.kill(self._driver.pid, signal.SIGKILL)
            self._driver.wait()

    def _start(self) -> "subprocess.Popen[bytes]":
        self.num_starts += 1
        address = f"cluster.address={self._machines.cluster.address}"
        return start(self._work / "said.txt", "run", str(self._config), "--set", address)

    def _said(self) -> str:
        return (self._work / "said.txt").read_text(errors="replace")[-2000:]


def start(said: Path, *words: str) -> "subprocess.Popen[bytes]":
    """A command in a session of its own."""
    with said.open("ab") as output:
        command = [sys.executable, "-m", "tokenmill", *words]
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)


def quiet(*command: str) -> None:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: code {done.returncode}: {done.stdout[-2000:]} {done.stderr[-2000:]}")


@contextmanager
def quiet_machines(chance: random.Random) -> Iterator[str]:
    """The address of a cluster like that which is disturbed."""
    machines = Machines(chance, NUM_NODES, head_cpus=0)
    try:
        yield machines.cluster.address
    finally:
        machines.lose_all()


def compare_training(work: Path, root: Path, config: Path, write) -> tuple[list[str], float]:
    """What differs from an undisturbed training of the same shards, and the seconds of an interval of that."""
    shutil.copytree(root, work / "again", ignore=shutil.ignore_patterns("training", "runs"))
    write(work / "again.yaml", work / "again")
    job, found = line.log_of(load(config))
    pinned = f"version={job.tokens_version}"  # a run puts shards together when it has ended
    with quiet_machines(random.Random(0)) as address:
        sets = ["--set", f"cluster.address={address}", "--set", pinned]
        quiet("-m", "tokenmill", "train", str(work / "again.yaml"), *sets)
    _, expected = line.log_of(load(work / "again.yaml", [pinned]))
    told = line.wrong_in_log(load(config))
    told += [f"{step.phase} would be done again: {step.why}" for step in plan(load(config)) if step.num_read]
    if {record["workers"] for record in found} != {2}:
        told.append("not all steps were made by two workers")
    losses, quiet_losses = ([record["loss"] for record in log] for log in (found, expected))
    if losses != quiet_losses:
        unequal = sum(a != b for a, b in zip(losses, quiet_losses, strict=False))
        told.append(f"losses differ in {unequal} of {len(losses)} steps, where there should be {len(quiet_losses)}")
    steps_s = [b["seconds"] - a["seconds"] for a, b in pairwise(expected)]
    return told, EVERY_STEPS * median(steps_s)


def left_over(mark: str) -> list[str]:
    """Processes that were started here and did not end."""
    until = time.monotonic() + 30
    while pids := [pid for pid in processes.marked(mark) if pid not in processes.tree(os.getpid())]:
        if time.monotonic() > until:
            return [f"process {pid} is left: {processes.command(pid)[:200]}" for pid in pids]
        time.sleep(0.5)
    return []


def said(loss: Loss) -> str:
    lost = "-" if loss.lost_s is None else f"{loss.lost_s:.0f} s"
    return f"  {loss.phase} at {loss.reached[1]}: {loss.what} with {loss.num_workers} workers: {lost} lost"


def shown(losses: list[Loss]) -> Table:
    made = table("Losses", "phase", "at row or step#", "what died", "workers on it#", "seconds lost#")
    for loss in losses:
        lost = "-" if loss.lost_s is None else f"{loss.lost_s:.0f}"
        made.add_row(loss.phase, f"{loss.reached[1]}", loss.what, f"{loss.num_workers}", lost)
    return made


def end_all(mark: str) -> None:
    for pid in processes.marked(mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--keep", action="store_true", help="the folder of it all, in the folder for temporary files")
    options = parser.parse_args()
    chance, console = random.Random(options.seed), Console(width=140, highlight=False)
    console.print(cpu.describe())
    with ExitStack() as stack:
        work = Path(tempfile.mkdtemp(prefix="losses-"))
        if not options.keep:
            stack.callback(shutil.rmtree, work, ignore_errors=True)
        os.environ |= VARIABLES | {MARK: str(work), "RAY_TMPDIR": str(work / "ray"), "OMP_NUM_THREADS": "1"}
        os.environ["TMPDIR"] = str(work / "tmp")
        (work / "ray").mkdir()
        (work / "tmp").mkdir()
        stack.callback(end_all, f"{MARK}={work}")
        write_corpus(work / "corpus", options.images)

        def write(path: Path, root: Path, **cluster) -> None:
            line.write_config(path, work / "corpus", root, options.epochs, EVERY_STEPS, **cluster)

        write(work / "quiet.yaml", work / "quiet", local_rows=10 * options.images)
        quiet(str(COMMAND), "run", str(work / "quiet.yaml"))
        expected = rows.contents(str(work / "quiet"), work)
        totals = [line.count(work / "quiet", name) for name in TABLES.values()]
        write(work / "config.yaml", work / "root")
        losses, began = draw(options.losses, chance), time.monotonic()
        disturbed = Disturbed(work / "config.yaml", work / "root", work, chance, totals)
        try:
            disturbed.run(losses, lambda loss: console.print(said(loss)))
        finally:
            disturbed.end()
        took_s = time.monotonic() - began
        wrong = [*disturbed.offences, *left_over(f"{MARK}={work}")]
        wrong += rows.differences(rows.contents(str(work / "root"), work), expected)
        told, interval_s = compare_training(work, work / "root", work / "config.yaml", write)
        prompt = ["--prompt", "a red circle", "--out", str(work / "red.png")]
        quiet("-m", "tokenmill", "sample", str(work / "config.yaml"), *prompt)
        wrong += told
    limit_s = interval_s + ALLOWED_S
    late = [loss for loss in losses if loss.counts and (loss.lost_s is None or loss.lost_s > limit_s)]
    wrong += [f"{said(loss)}: more than {limit_s:.0f} s" for loss in late]
    console.print(shown(losses))
    for each in wrong:
        console.print(f"  {each}", markup=False, soft_wrap=True)
    num_rows = sum(counter.total() for counter in expected.values())
    kinds = ", ".join(f"{count} x {kind}" for kind, count in Counter(loss.what for loss in losses).items())
    in_training = [loss.lost_s for loss in losses if loss.counts and loss.lost_s is not None]
    console.print(
        f"{len(losses)} losses ({kinds}) in {took_s:.0f} s, {disturbed.num_starts} starts of the command: "
        f"{num_rows} rows compared; {len(in_training)} losses of a training cost {median(in_training):.0f} s in the "
        f"median, {max(in_training):.0f} s at most, of {limit_s:.0f} s allowed (interval {interval_s:.0f} s). "
        + ("WRONG" if wrong else "Nothing differs, nothing was done by hand."),
        soft_wrap=True,
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
