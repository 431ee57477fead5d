"""An hour of random faults at once, then equality with an undisturbed run.

    python benchmarks/chaos.py --minutes 60 --seed 7 [--data FOLDER] [--out chaos.json]

A corpus of a few hundred small images, clips, broken files, captions and a tar stands in a local S3 (moto). Round after
round `tokenmill run` (without training) is started again and again while, drawn from the seed,

- its files are added, overwritten, renamed, spoilt, deleted, or taken away and put back as they were;
- a proxy before the store refuses, cuts, delays or trickles 5 % of the requests (disturbances/proxy.py);
- the driver and its worker processes are killed (-9), the driver is stopped by SIGINT and SIGTERM, and on Ray, in turns
  with worker processes of the driver, nodes of a cluster of three die;
- the disk of the root and of temporary files is full for a while, in rounds whose root is on a small one (needs root);
- the clock of driver and workers jumps by up to days (disturbances/clock/sitecustomize.py says what is shifted).

Then nothing is disturbed any more: one process that lives as long as the benchmark runs the same config, `vacuum` and
`verify` follow, and all rows of all tables and of an export are compared with those of a run over the same files into
an empty root, in all columns that do not name a run. Near duplicates are not looked for: which of two was first is
history.

Exit code 1 when a round is not equal; when a command ended with another exit code than 0, 1 (with its line), 130, 143,
or -9 where it was killed, or with a traceback; or when between the rounds memory, descriptors or threads of that
process, shared memory, temporary files, or processes left over grew.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import yaml
from disturbances import disk, files, growth, processes, report, rows
from disturbances.growth import Sample
from disturbances.proxy import Proxy
from disturbances.report import Round
from disturbances.services import COMMAND, Steady, machines, store
from rich.console import Console

from tokenmill.pipeline.demo.show import CONFIG
from tokenmill.storage import scratch

BUCKET = "chaos"
MARK = "TOKENMILL_CHAOS"
CLOCK = Path(__file__).parent / "disturbances" / "clock"
DISK_MB, SHARED_MEMORY_MB = 160, 4096
SHARE = 0.05  # of requests
WORKERS_LIVE_S = 8.0  # a row that kills two more workers alone is rejected: no fault, so not to be brought about
ROUND_S = (20.0, 60.0)
PACES_S = ((0.2, 1.0), (0.5, 3.0), (1.0, 6.0))
DRIVER_LIVES_S = (2.0, 30.0)  # its imports take some of it
JUMPS_S = (-172_800, -7200, -30, -1, 1, 30, 7200, 172_800)
LIMIT_S = 600.0
WEIGHTS = {"files": 8, "worker": 3, "driver": 1, "stop": 1, "clock": 1}
WEIGHTS_BY_KIND = {"ray": {"node": 2}, "disk": {"disk": 3}, "local": {}}
_LOG = re.compile(r"\(traceback: (\S+\.log)\)")
_PER_RUN = re.compile(r"\(traceback: \S+\)|tokenmill-chaos-\w+|\d{8}-\d{9}-\w{4}|part-\w+-\w+|pid \d+|\d+\.\d+ MB")
KNOWN_CODES = {0, 1, 128 + signal.SIGINT, 128 + signal.SIGTERM}


@dataclass(eq=False)
class Place:
    """A root, refreshed in round after round, with its config and its temporary files."""

    folder: Path
    root: str

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        self.exported = self.folder / "exported"

    def config(self, address: str | None) -> Path:
        """Written anew: as the demo's, in small blocks and shards."""
        document = yaml.safe_load(CONFIG.read_text())
        sources = [{"uri": f"s3://{BUCKET}/{files.PHOTOS}"}]
        sources.append({"uri": f"s3://{BUCKET}/{files.TARS}", "kind": "webdataset"})
        document |= {"root": self.root, "sources": sources}
        document["cluster"] = {"num_cpus": 2, "commit_every_s": 1.0, "shard_rows": 40, "address": address}
        document["curate"]["duplicates"] = {"near_radius": None}
        for phase in ("curate", "caption", "tokenize"):
            document[phase] = document.get(phase, {}) | {"resources": {"batch_rows": 8}}
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(document))
        return path


class Chaos:
    """All that the rounds share."""

    def __init__(self, options: argparse.Namespace, work: Path, stack: ExitStack, has_disk: bool):
        self.chance, self._options, self._work = random.Random(options.seed), options, work
        self._mark = f"{MARK}={work}"
        stack.callback(self._end_all)
        self._clock = work / "clock"
        self._clock.write_text("0")
        os.environ |= {
            MARK: str(work),
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "OMP_NUM_THREADS": "1",
        }
        os.environ["AWS_ENDPOINT_URL"] = stack.enter_context(store(work / "moto", BUCKET))
        client = boto3.client("s3")
        self.files = files.Files(client, BUCKET, files.pool(options.data), self.chance)
        self.files.fill()
        self.proxy = stack.enter_context(Proxy(os.environ["AWS_ENDPOINT_URL"], SHARE, options.seed, slow_s=1.0))
        self._disk = None
        self.places = {"local": Place(work / "s3", f"s3://{BUCKET}/root")}
        self.places["ray"] = self.places["local"]
        if has_disk:
            self._disk = disk.SmallDisk(work / "disk", DISK_MB)
            stack.callback(self._disk.unmount)
            self.places["disk"] = Place(work / "disk" / "place", str(work / "disk" / "root"))
        self._own = work / "own"
        self._own.mkdir()
        self._steady = Steady(self._calm(self._own), work / "steady.txt")
        stack.callback(self._steady.end)
        self.samples: list[Sample] = []
        self._full_until = self._spared_until = self._driver_lives_until = 0.0
        self._machines: Any = None

    def _calm(self, temporary: Path) -> dict[str, str]:
        """The clock's module can be imported here, too: Ray pickles functions of it by name."""
        return os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(CLOCK)}

    def _disturbed(self, place: Place) -> dict[str, str]:
        return self._calm(place.temporary) | {
            "AWS_ENDPOINT_URL": self.proxy.url,
            "TOKENMILL_CHAOS_CLOCK": str(self._clock),
        }

    def round(self, made: Round, seconds: float) -> None:
        """Disturb for so long, complete, compare, and look at what is held."""
        started = time.monotonic()
        place = self.places[made.kind]
        with ExitStack() as stack:
            address = None
            if made.kind == "ray":
                self._machines = stack.enter_context(machines(self.chance, self._disturbed(place)))
                address = self._machines.cluster.address
            config = place.config(address)
            self._disturb(made, place, config, seconds)
            self._complete(made, place, config)
        self._compare(made, place, place.config(None))
        self._sample(made)
        made.seconds = time.monotonic() - started

    def _disturb(self, made: Round, place: Place, config: Path, seconds: float) -> None:
        ends, pace_s = time.monotonic() + seconds, self.chance.choice(PACES_S)
        weights = WEIGHTS | WEIGHTS_BY_KIND[made.kind]
        self.proxy.share = SHARE
        before = self.proxy.injected.copy()
        driver = self._start(place, config)
        while time.monotonic() < ends:
            time.sleep(self.chance.uniform(*pace_s))
            made.peak_mb = max(made.peak_mb, processes.held(processes.tree(driver.pid)).memory_mb)
            kind = self.chance.choices(list(weights), list(weights.values()))[0]
            killed = driver.poll() is None and self._befall(kind, made, driver)
            if killed or driver.poll() is not None:
                self._ended(made, driver, killed)
                driver = self._start(place, config)
        self._calm_down()
        self._finish(made, driver)
        made.faults.update({f"store: {kind}": count for kind, count in (self.proxy.injected - before).items()})

    def _befall(self, kind: str, made: Round, driver: subprocess.Popen) -> bool:
        """Whether the driver was killed."""
        now = time.monotonic()
        if self._disk is not None and now >= self._full_until:
            self._disk.free()
        if kind == "files":
            made.faults[f"file {self.files.change()}"] += 1
        elif kind == "clock":
            self._clock.write_text(str(self.chance.choice(JUMPS_S)))
            made.faults["clock jumped"] += 1
        elif kind == "disk" and self._disk is not None and now >= self._full_until:
            self._disk.fill(self.chance.choice([0, 0, 1 << 14, 1 << 18]))
            self._full_until = now + self.chance.uniform(2.0, 20.0)
            made.faults["disk full"] += 1
        elif kind == "worker" and now >= self._spared_until and self._kill_worker(made, driver):
            self._spared_until = now + WORKERS_LIVE_S
        elif kind == "node" and now >= self._spared_until:
            self._machines.replace_node()
            self._spared_until = now + WORKERS_LIVE_S
            made.faults["node killed"] += 1
        elif now < self._driver_lives_until:
            return False
        elif kind == "driver":
            kill(driver)
            made.faults["driver killed"] += 1
            return True
        elif kind == "stop":
            which = self.chance.choice([signal.SIGINT, signal.SIGTERM])
            driver.send_signal(which)
            made.faults[f"driver {which.name}"] += 1
        return False

    def _kill_worker(self, made: Round, driver: subprocess.Popen) -> bool:
        if made.kind == "ray":
            what = self.chance.choice(["MapBatches", "ray::"])
            killed = self._machines.kill_worker(what)
        else:
            found = [pid for pid in processes.tree(driver.pid)[1:] if "python" in processes.command(pid)]
            what, killed = "process", bool(found)
            with suppress(ProcessLookupError, IndexError):
                os.kill(self.chance.choice(found), signal.SIGKILL)
        if killed:
            made.faults[f"worker killed ({'actor' if what == 'MapBatches' else 'any'})"] += 1
        return killed

    def _calm_down(self) -> None:
        self.proxy.share = 0.0
        self.files.put_back()
        self._clock.write_text("0")
        self._full_until = 0.0
        if self._disk is not None:
            self._disk.free()

    def _start(self, place: Place, config: Path) -> subprocess.Popen:
        """Its stderr stands in a file; it is in a session of its own, and hears of no Ctrl-C meant for this command."""
        self._driver_lives_until = time.monotonic() + self.chance.uniform(*DRIVER_LIVES_S)
        with (self._work / "stderr.txt").open("wb") as stderr:
            return subprocess.Popen(
                [sys.executable, str(COMMAND), "run", str(config)],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=self._disturbed(place),
                start_new_session=True,
            )

    def _finish(self, made: Round, driver: subprocess.Popen) -> None:
        """The last driver is killed, or comes to its own end."""
        killed = self.chance.random() < 0.5 and driver.poll() is None
        if not killed:
            try:
                driver.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                made.offences.append(f"a disturbed run took more than {LIMIT_S:g} s to end: {self._stderr()}")
                killed = True
        if killed:
            kill(driver)
            made.faults["driver killed"] += 1
        self._ended(made, driver, killed)

    def _ended(self, made: Round, driver: subprocess.Popen, killed: bool) -> None:
        code, said = driver.wait(), self._stderr()
        made.codes[code] += 1
        for log in _LOG.findall(said):  # read, so not wanted any more; with a full disk it stands in shared memory
            Path(log).unlink(missing_ok=True)
        if code == 1:
            made.said[_PER_RUN.sub("...", " ".join(said.split()))[:300]] += 1
        is_known = code in KNOWN_CODES or (killed and code == -signal.SIGKILL)
        is_said = code != 1 or "tokenmill: " in said
        if not (is_known and is_said) or "Traceback (most" in said:
            made.offences.append(f"run: code {code}: {said}")

    def _stderr(self) -> str:
        return (self._work / "stderr.txt").read_text(errors="replace")[-4000:]

    def _complete(self, made: Round, place: Place, config: Path) -> None:
        """Run once more, undisturbed."""
        if error := self._steady.run(config, place.temporary):
            made.offences.append(f"the undisturbed run failed: {error}")

    def _quiet(self, made: Round, place: Place, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, str(COMMAND), *words],
            env=self._calm(place.temporary),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        if done.returncode:
            said = f"{done.stdout[-2000:]} {done.stderr[-2000:]}"
            made.offences.append(f"tokenmill {' '.join(words)}: code {done.returncode}: {said}")

    def _compare(self, made: Round, place: Place, config: Path) -> None:
        with tempfile.TemporaryDirectory(dir=self._work) as name:
            fresh = Place(Path(name) / "fresh", f"{name}/root")
            self._quiet(made, fresh, "run", str(fresh.config(None)))
            self._quiet(made, place, "vacuum", str(config), "--hours", "0")
            self._quiet(made, place, "verify", str(config))
            for each, of in ((place, config), (fresh, fresh.folder / "config.yaml")):
                self._quiet(made, each, "export", "webdataset", str(of), "--out", str(each.exported), "--compact")
            found, expected = (rows.contents(each.root, each.exported) for each in (place, fresh))
        made.unequal = rows.differences(found, expected)
        made.num_rows = sum(counter.total() for counter in expected.values())
        if made.unequal:
            place.root += "x"  # a place that is wrong once would be wrong in every round
            shutil.rmtree(place.exported, ignore_errors=True)

    def _end_all(self) -> None:
        """Whatever was started here and is left, also where this command is interrupted."""
        for pid in processes.marked(self._mark):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _sample(self, made: Round) -> None:
        """What is held now that nothing is at work, and what killed commands left is swept, as the next one would."""
        for place in {*self.places.values()}:
            tempfile.tempdir = str(place.temporary)
            for lock in place.temporary.glob("*/lock"):  # what is kept a while for who takes over, as after that while
                os.utime(lock, (0, 0))
            scratch.sweep()
        tempfile.tempdir = None
        mine = set(processes.tree(os.getpid()))
        held = processes.held(processes.tree(self._steady.pid))
        temporary = [path for place in {*self.places.values()} for path in place.temporary.rglob("*")]
        left = [pid for pid in processes.marked(self._mark) if pid not in mine]
        for pid in left:
            made.offences.append(f"left over: process {pid}: {processes.command(pid)[:300]}")
        self.samples.append(
            Sample(
                number=made.number,
                memory_mb=held.memory_mb,
                descriptors=held.descriptors,
                threads=held.threads,
                rays=(self.samples[-1].rays if self.samples else 0) + (made.kind == "ray"),
                shared_memory_bytes=disk.used_bytes(Path("/dev/shm")),
                temporary_files=len(temporary),
                processes_left=len(left),
            )
        )


def kill(driver: subprocess.Popen) -> None:
    """The driver alone: its workers are to notice."""
    with suppress(ProcessLookupError):
        os.kill(driver.pid, signal.SIGKILL)
    driver.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="no round begins later")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--data", type=Path, help="a folder with images/ and videos/ to make the corpus of")
    parser.add_argument("--out", type=Path, help="where to write all of it as JSON")
    parser.add_argument("--kinds", default="local,disk,ray", help="of rounds, in turns")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is behind it with it ignored
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    has_disk = disk.with_private_mounts(SHARED_MEMORY_MB)
    console, rounds = Console(width=160), list[Round]()
    kinds = [kind for kind in options.kinds.split(",") if has_disk or kind != "disk"]
    if not has_disk:
        console.print("Not root: no disk can be filled, and shared memory is that of the whole machine")
    ends = time.monotonic() + 60 * options.minutes
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenmill-chaos-")))
        chaos = Chaos(options, work, stack, has_disk)
        while time.monotonic() < ends:
            made = Round(len(rounds) + 1, kinds[len(rounds) % len(kinds)])
            seconds = chaos.chance.uniform(*ROUND_S)
            chaos.round(made, min(seconds, max(ROUND_S[0], 60 * options.minutes / 8)))
            rounds.append(made)
            console.print(report.line(made, chaos.samples[-1]), highlight=False, soft_wrap=True)
            for trouble in [*made.unequal, *made.offences]:
                console.print(f"  {trouble}", highlight=False, markup=False, soft_wrap=True)
        told = report.summary(rounds, chaos.samples, options.minutes, options.seed)
    if options.out:
        options.out.write_text(json.dumps(told, indent=1))
    if len(rounds) < growth.ENOUGH:
        console.print(f"Fewer than {growth.ENOUGH} rounds: memory, descriptors and threads are not judged")
    for name, grew in told["growth"].items():
        console.print(f"{name}: {'flat' if grew is None else f'grew by {grew:,.0f}'}", highlight=False)
    console.print(told["cpu"], highlight=False)
    console.print(report.row(told), highlight=False, soft_wrap=True)
    is_flat = all(grew is None for grew in told["growth"].values())
    sys.exit(0 if is_flat and not told["num_unequal"] and not told["num_offences"] else 1)


if __name__ == "__main__":
    main()
