"""The explorer over a catalog of so many media, by HTTP as a browser asks it: first page, filters, sliders, the nearest
by embeddings; seconds of each, and the server's memory.

The catalog is that of benchmarks/report.py; with --embeddings each medium has one of 512 random numbers.
"""

import argparse
import http.client
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import yaml
from report import RULES, fill, photos
from rich.console import Console
from rich.table import Table as Printed

from tokenmill.pipeline.catalog.shard_files import SCHEMAS, write_shard
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.storage import cpu

WIDTH = 512
MOVES = 60


def embed(config: RunConfig) -> None:
    """Give every medium an embedding."""
    media = Catalog(config.root).media
    rng = np.random.default_rng(0)
    added, removed = [], []
    for file in media.files():
        rows = media.read_files([file])
        made = rng.standard_normal((len(rows), WIDTH), np.float32)
        made /= np.linalg.norm(made, axis=1, keepdims=True)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(made.ravel()), WIDTH).cast(pa.list_(pa.float32()))
        place = rows.column_names.index("embedding")
        rows = rows.set_column(
            place, SCHEMAS["media"].field("embedding"), lists.cast(SCHEMAS["media"].field("embedding").type)
        )
        added.append(write_shard(media.root, "media", rows))
        removed.append(file.rsplit("/", 1)[1])
    media.commit(added, removed, {}, sum(shard.num_rows for shard in added))


class Visitor:
    """One connection with the token."""

    def __init__(self, address: str):
        parts = urlsplit(address)
        self._connection = http.client.HTTPConnection(parts.netloc, timeout=120)
        self._cookie = f"tokenmill={parts.query.removeprefix('token=')}"

    def get(self, path: str) -> tuple[float, str]:
        """Seconds, and the answer."""
        started = time.monotonic()
        self._connection.request("GET", path, headers={"Cookie": self._cookie})
        answer = self._connection.getresponse()
        text = answer.read().decode("utf-8", "replace")
        assert answer.status == 200, (path, answer.status, text[:200])
        return time.monotonic() - started, text


def memory_mb(pid: int) -> tuple[float, float, float]:
    """Resident now: in all, and without what is mapped from files; and the most there was."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return tuple(int(status[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon", "VmHWM"))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=int, default=1_000_000)
    parser.add_argument("--embeddings", action="store_true")
    parser.add_argument("--folder", type=Path, help="kept, and used again; default: one that is deleted")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        document = {"root": str(folder / "root"), "sources": [{"uri": str(folder)}]}
        document |= {"curate": {"decide": {"image_rules": RULES}}}
        config = RunConfig.model_validate(document)
        if not (folder / "root").exists():
            folder.mkdir(parents=True, exist_ok=True)
            fill(config, options.media, photos(folder))
            if options.embeddings:
                embed(config)
        (folder / "config.yaml").write_text(yaml.safe_dump(document))
        command = [str(Path(sys.executable).parent / "tokenmill"), "explore", str(folder / "config.yaml")]
        started = time.monotonic()
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = re.search(r"http://\S+", server.stdout.readline())[0]  # type: ignore[index]
            show(address, server.pid, started, options.embeddings)
        finally:
            server.terminate()
            server.wait()


def show(address: str, pid: int, started: float, has_embeddings: bool) -> None:
    visitor = Visitor(address)
    made = Printed(title=f"Explorer, {cpu.describe()}", title_justify="left")
    for column in ("what", "seconds"):
        made.add_column(column, justify="left" if column == "what" else "right")
    first, text = visitor.get("/")
    made.add_row("start to first page", f"{time.monotonic() - started:.2f}")
    made.add_row("first page alone", f"{first:.2f}")
    (media_id, *_) = re.findall(r'data-id="([0-9a-f]+)"', text)
    for name, path in (
        ("a verdict, by a score, falling", "/?verdict=kept&sort=aesthetic&falls=1"),
        ("two conditions", "/?c=sharpness&o=%3E%3D&v=300&c=uri&o=has&v=01"),
        ("page 1,000", "/?page=1000"),
        ("a medium", f"/medium/{media_id}"),
        ("a preview", f"/preview/{media_id}"),
        ("copies", "/copies"),
        ("rules, first time", "/rules/image"),
    ):
        made.add_row(name, f"{visitor.get(path)[0]:.2f}")
    paths = [f"/rules/image/judged?pleasing.0={value:.3f}" for value in np.linspace(3.5, 6.5, MOVES)]
    moves = sorted(visitor.get(path)[0] for path in paths)
    made.add_row(
        f"a slider moved, median and 95th of {MOVES}", f"{moves[MOVES // 2]:.3f} {moves[int(MOVES * 0.95)]:.3f}"
    )
    if has_embeddings:
        made.add_row("the nearest, first time (embeddings read)", f"{visitor.get(f'/?near={media_id}')[0]:.2f}")
        again = sorted(visitor.get(f"/?near={media_id}&kind=image")[0] for _ in range(10))
        made.add_row("the nearest, median and most of 10", f"{again[5]:.3f} {again[-1]:.3f}")
    total, own, most = memory_mb(pid)
    made.add_row("memory, MB; of it not mapped from a file; most", f"{total:,.0f} {own:,.0f} {most:,.0f}")
    Console(width=120).print(made)


if __name__ == "__main__":
    main()
