"""What a root of so many made-up media costs: each operation in a process of its own, with its seconds and peak memory.

    python benchmarks/scale.py [--media 1000000 10000000] [--folder FOLDER]

The catalog is that of benchmarks/refresh.py: each object a kept, captioned, tokenized image. `settles` is the first run
over it, which looks for duplicates among all and writes what follows; `unchanged, planned` the next one, which finds
that there is nothing to do and keeps it; `unchanged` all after that; `a rule` one that rejects a hundredth; `forget` of
10,000 ids in all versions. Growth of an operation is its time over that of the smallest root, beside that of the rows.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from refresh import FOLDER, configured, fill, objects
from rich.console import Console
from rich.table import Table as Printed

from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.plan import settled
from tokenmill.pipeline.refresh import sources
from tokenmill.storage import cpu

NUM_FORGOTTEN = 10_000
OPERATIONS = ("open", "settles", "unchanged, planned", "unchanged", "status", "a rule", "forget")


def work(name: str, root: str, num: int) -> None:
    """One operation, in this process."""
    from tokenmill.pipeline.run.redecide import redecide
    from tokenmill.pipeline.run.runner import run_phases

    config, quiet = configured(root, FOLDER), Console(quiet=True)
    if name == "open":
        assert [table.version for table in Catalog(root)]
    elif name == "status":
        from tokenmill.pipeline.reports.status import print_status

        print_status(config, quiet, as_json=False)
    elif name == "a rule":
        decide = {"image_rules": {"large_enough": "width_px >= 32", "sharp": "sharpness >= 0.01"}}
        given = config.model_dump(mode="json", exclude_defaults=True)
        redecide(RunConfig.model_validate(given | {"curate": {"decide": decide}}), quiet)
    elif name == "forget":
        from tokenmill.pipeline.commands.forget import forget

        ids = Catalog(root).media.scan(["media_id"])["media_id"].slice(0, NUM_FORGOTTEN).to_pylist()
        forget(config, ids, quiet)
    else:
        checked = mock.patch("tokenmill.pipeline.run.runner.check_sources")
        with mock.patch.object(sources, "walk", lambda *_: objects(0, num)), checked:
            run_phases(config, settled.PHASES, "run", quiet)


def measured(name: str, root: str, num: int) -> dict[str, float]:
    """Seconds and the most memory, MB, of one operation."""
    command = [sys.executable, str(Path(__file__).resolve()), "--work", name, "--root", root, "--media", str(num)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--folder", type=Path, help="where roots are made; default: one that is deleted")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        started = time.monotonic()
        work(options.work, options.root, *options.media)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": time.monotonic() - started, "memory_mb": peak}))
        return
    console, found = Console(width=120), dict[int, dict[str, dict[str, float]]]()
    with tempfile.TemporaryDirectory(prefix="tokenmill-bench-", dir=options.folder) as folder:
        for num in options.media:
            root = str(Path(folder, str(num)))
            fill(configured(root, FOLDER), num)
            found[num] = {}
            for name in OPERATIONS:
                found[num][name] = measured(name, root, num)
                console.print(f"{num:,} {name}: {found[num][name]}", highlight=False)
    least = min(found)
    made = Printed(title=cpu.describe(), title_justify="left")
    made.add_column("operation")
    for num in found:
        made.add_column(f"{num:,} media", justify="right")
    for name in OPERATIONS:
        cells = []
        for each in found.values():
            one = each[name]
            growth = one["seconds"] / found[least][name]["seconds"]
            cells.append(f"{one['seconds']:.1f} s  {one['memory_mb'] / 1000:.2f} GB  x{growth:.1f}")
        made.add_row(name, *cells)
    console.print(made)


if __name__ == "__main__":
    main()
