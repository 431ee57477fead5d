"""Nodes of one CPU, 1, 2 and 4 of them: rows a second, what a node costs, and the driver's CPU for a million rows.

    python benchmarks/scaling.py [--rows 100000] [--nodes 1 2 4] [--slow-ms 20] [--batch-rows 32]

A flow of synthetic rows through the pools, shards and commits that curate has, on real raylets (tests/pipeline/jobs).
`waits` are rows that sleep: nodes share the cores of this machine, so only what is no work on a CPU can grow with
their number here. `cheap` are rows that cost nothing: what is left is the flow itself. The driver's CPU is that of this
program's process; a node's that of its raylet and agents, while a flow is at work and none of its workers counted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tokenmill.storage.cpu import describe

TESTS = Path(__file__).resolve().parent.parent / "tests" / "pipeline"
sys.path[:0] = [str(TESTS / "jobs"), str(TESTS / "flow")]
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far; 0 of one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def of_nodes(nodes: Any) -> dict[int, float]:
    """CPU seconds of the processes of all nodes but workers, by pid."""
    from ray_cluster import descendants

    found = {}
    for node in nodes.processes:
        for pid in [node.pid, *descendants(node.pid)]:
            try:
                title = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if not title.startswith(b"ray::"):
                found[pid] = cpu_s(pid)
    return found


def flow(address: str, num_rows: int, row_s: float, batch_rows: int) -> dict[str, float]:
    """In a process of its own, whose CPU is the driver's."""
    with tempfile.TemporaryDirectory() as folder:
        words = [folder + "/root", address, num_rows, 0, row_s, batch_rows]
        command = [sys.executable, str(TESTS / "flow" / "comers.py"), *map(str, words)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="cheap ones")
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--slow-ms", type=float, default=20.0, help="of a row that waits")
    parser.add_argument("--batch-rows", type=int, default=32, help="of a block")
    given = parser.parse_args()
    from ray_cluster import ray_nodes

    print(describe())
    print("| nodes | rows | rows/s | driver CPU, s for 10^6 rows | CPU of a node without workers, s a second |")
    with ray_nodes({}, "--num-cpus=1") as nodes:
        for number in given.nodes:
            while len(nodes.processes) < number:
                nodes.add(1)
            time.sleep(15)  # their agents have started
            waits = ("waits", int(number * 25_000 / given.slow_ms), given.slow_ms / 1e3)
            for name, num_rows, row_s in (waits, ("cheap", given.rows, 0.0)):
                before, start = of_nodes(nodes), time.monotonic()
                told = flow(nodes.address, num_rows, row_s, given.batch_rows)
                took_s, after = time.monotonic() - start, of_nodes(nodes)
                node_s = sum(after[pid] - before.get(pid, 0.0) for pid in after) / number / took_s
                rate, driver_s = told["rows_per_s"], told["cpu_s"] / num_rows * 1e6
                print(f"| {number} | {num_rows:,} {name} | {rate:,.0f} | {driver_s:,.0f} | {node_s:.2f} |", flush=True)


if __name__ == "__main__":
    main()
