"""Seconds from `tokenmill submit` to the first committed row, beside a plain `tokenmill run` of the same corpus.

    python benchmarks/submission.py [--rounds 3] [--images 72] [--on ray slurm]

Ray is a cluster of two nodes that is up, by its Jobs API, with the code shipped; Slurm a real one of two nodes, idle
(tests/pipeline/jobs). A plain run is measured twice: as it is, which is done by processes of this machine, and on a Ray
that it starts. The nodes of that Slurm reach no name server, for which Ray waits as it starts; `slurm` has the variable
RES_OPTIONS, which gives up soon. Rounds take turns; each waits until the job of the one before is over. A row is there
when the table's log says so, looked for each 50 ms. Exit code 1 when a submission takes 20 s more than the plain run.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import yaml

from tokenmill.pipeline.config import RunConfig, load
from tokenmill.pipeline.demo.scenes import write_corpus
from tokenmill.pipeline.jobs.submit import find, scheduler_of
from tokenmill.storage.cpu import describe

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS / "storage"), str(TESTS / "pipeline" / "jobs")]
GOAL_S, LIMIT_S, LOOK_S = 20.0, 300.0, 0.05
PHASE = "--phase=curate"
QUICK_NAMES = "timeout:1 attempts:1"


class World:
    """Configs of new roots over one corpus."""

    def __init__(self, folder: Path, num_images: int):
        self.folder, self.corpus, self._count = folder, folder / "corpus", 0
        write_corpus(self.corpus, num_images=num_images, num_videos=1)

    def config(self, **blocks: object) -> Path:
        self._count += 1
        path = self.folder / f"{self._count}.yaml"
        document = {"root": str(self.folder / f"root-{self._count}"), "sources": [{"uri": str(self.corpus)}]}
        path.write_text(yaml.safe_dump(document | blocks))
        return path


def first_row_s(config: RunConfig, begin: Callable[[], subprocess.Popen]) -> tuple[float, float]:
    """Seconds until what `begin` starts has committed a row; and until that process, if it ends before, had ended."""
    from small_run import num_commits

    start, returned_s = time.monotonic(), 0.0
    process = begin()
    while not num_commits(config.root, "media"):
        if process.poll() is not None and not returned_s:
            returned_s = time.monotonic() - start
            if process.returncode:
                raise SystemExit(f"code {process.returncode}: {process.args}")
        if time.monotonic() - start > LIMIT_S:
            raise SystemExit(f"no row within {LIMIT_S:g} s: {process.args}")
        time.sleep(LOOK_S)
    took_s = time.monotonic() - start
    process.wait(LIMIT_S)
    return took_s, returned_s or took_s


def started(*words: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "tokenmill", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def plain(world: World, local_rows: int) -> tuple[float, float]:
    path = world.config(cluster={"local_rows": local_rows})
    return first_row_s(load(path), lambda: started("run", path, PHASE))


def submitted(world: World, where: str, **jobs: object) -> tuple[float, float]:
    path = world.config(jobs={"on": where, **jobs})
    config = load(path)
    took = first_row_s(config, lambda: started("submit", path, PHASE))
    scheduler = scheduler_of(config, where)
    deadline = time.monotonic() + LIMIT_S
    while find(config, scheduler, None).state in ("queued", "running") and time.monotonic() < deadline:
        time.sleep(0.5)  # what comes next finds an idle cluster
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=72)
    parser.add_argument("--on", nargs="*", choices=["ray", "slurm"], default=["ray", "slurm"])
    given = parser.parse_args()
    from ray_cluster import ray_cluster
    from slurm_cluster import slurm

    print(describe())
    with ExitStack() as stack:
        # Slurm's nodes have a /tmp of their own.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenmill-submission-", dir="/var/tmp")))
        folder.chmod(0o755)
        world = World(folder, given.images)
        ways: dict[str, Callable[[], tuple[float, float]]] = {
            "plain": lambda: plain(world, 1_000),
            "plain, on Ray": lambda: plain(world, 0),
        }
        if "ray" in given.on:
            dashboard, _, _ = stack.enter_context(ray_cluster({}))
            ways["ray"] = lambda: submitted(world, "ray", ray={"address": dashboard})
        if "slurm" in given.on:
            stack.enter_context(slurm(2))
            shape = {"default": {"nodes": 2}}
            ways["slurm, nodes without a name server"] = lambda: submitted(world, "slurm", shapes=shape)
            ways["slurm"] = lambda: submitted(world, "slurm", shapes=shape, env={"RES_OPTIONS": QUICK_NAMES})
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for number in range(given.rounds):
            for name, way in ways.items():
                found[name].append(way())
                print(f"  round {number + 1}: {name} {found[name][-1][0]:.1f} s", flush=True)
    base = median(took for took, _ in found["plain"])
    print("| way | to the first row, s, median | each | more than plain, s | `submit` returned after, s |")
    for name, times in found.items():
        took, each = median(row for row, _ in times), ", ".join(f"{row:.1f}" for row, _ in times)
        returned = "-" if name.startswith("plain") else f"{median(end for _, end in times):.1f}"
        print(f"| {name} | {took:.1f} | {each} | {took - base:+.1f} | {returned} |")
    over = [name for name in given.on if median(row for row, _ in found[name]) - base > GOAL_S]
    sys.exit(f"more than {GOAL_S:g} s over plain: {', '.join(over)}" if over else 0)


if __name__ == "__main__":
    main()
