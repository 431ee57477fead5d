"""A small corpus whose runs are compared with their plans; for the tests of plans and histories."""

import os
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import yaml
from PIL import Image
from rich.console import Console

from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import load
from tokenmill.pipeline.plan.files import CuratePlan
from tokenmill.pipeline.run.run import Run
from tokenmill.pipeline.run.runner import run_phases

QUIET = Console(quiet=True)
PHASES = ("curate", "caption", "tokenize")
SIDES_PX = {"a": 64, "b": 64, "c": 80, "d": 40, "e": 24}


class World:
    """A folder of pictures, and a config over it that a test changes key by key."""

    KEYS: ClassVar = {"curate": "uri", "caption": "media_id", "tokenize": "media_id"}

    def __init__(self, folder: Path):
        self.folder, self.photos, self.sets = folder, folder / "photos", list[str]()
        self.photos.mkdir()
        for seed, (name, side_px) in enumerate(SIDES_PX.items()):
            self.draw(name, side_px, seed)
            (self.photos / f"{name}.txt").write_text(f"words of {name}")
        self.path = folder / "config.yaml"
        part = {"decide": {"image_rules": {"large": "width_px >= 32"}}}
        document = {"root": str(folder / "root"), "sources": [{"uri": str(self.photos)}], "curate": part}
        document |= {"caption": {}, "tokenize": {"frames": {"area_px": 4096}}}
        for phase in PHASES:
            document[phase] |= {"resources": {"workers": 1}}
        self.path.write_text(yaml.safe_dump(document))

    def draw(self, name: str, side_px: int, seed: int) -> None:
        small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((side_px, side_px)).save(self.photos / f"{name}.png")

    def corrupt(self, *names: str) -> None:
        """What opens these files from now on finds zeros; their sizes and times stay."""
        for path in (self.photos / f"{name}.png" for name in names):
            state = path.stat()
            path.write_bytes(bytes(state.st_size))
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

    def run(self, *sets: str, phases: tuple[str, ...] = PHASES) -> Run:
        """Run with some more of the config changed. What its plan foretold to read, it read."""
        self.sets += sets
        config = load(self.path, self.sets)
        self._versions = [table.version for table in Catalog(config.root)] if Path(config.root).exists() else []
        before = {str(path): path.stat().st_mtime_ns for path in self.folder.rglob("*")}
        planned = run_phases(config, phases, "run", QUIET, plan_only=True).steps
        assert {str(path): path.stat().st_mtime_ns for path in self.folder.rglob("*")} == before, "a plan wrote"
        run = run_phases(config, phases, "run", QUIET)
        assert run.steps == planned
        self._compare(run)
        foretold, unknown = Counter[str](), set()
        for step in run.steps:
            foretold[step.phase] += step.num_read or 0
            unknown |= {step.phase} if step.num_read is None else set()
        for report in run.reports:
            exact = report.phase not in unknown
            assert foretold[report.phase] == report.num_read if exact else foretold[report.phase] <= report.num_read
        return run

    def _compare(self, run: Run) -> None:
        """Each phase read what its plan said, row by row; more only where files were read first. What had nothing to do
        left the tables alone.
        """
        curated = run.foreseen.get("curate")
        opens = isinstance(curated, CuratePlan) and curated.todo.num_rows > 0
        for report, (name, plan) in zip(run.reports, run.foreseen.items(), strict=True):
            told = set(plan.todo[self.KEYS[name]].to_pylist())
            read = set(run.plans[name].todo[self.KEYS[name]].to_pylist())
            is_open = opens and name != "curate" or any(step.num_read is None for step in plan.steps)
            assert told <= read if is_open else told == read, (name, told ^ read)
            assert report.num_read == run.plans[name].todo.num_rows
        if all(plan.is_nothing for plan in run.foreseen.values()):
            assert self._versions == [table.version for table in Catalog(run.config.root)], "nothing to do, and done"

    def tokens(self) -> dict[str, dict]:
        """Rows of `tokens` by the name of the picture."""
        catalog = Catalog(str(self.folder / "root"))
        names = {row["media_id"]: Path(row["uri"]).stem for row in catalog.media.scan(["media_id", "uri"]).to_pylist()}
        return {names[row["media_id"]]: row for row in catalog.tokens.scan().to_pylist()}
