"""Random histories of a corpus: whatever happens to files, captions and the config, a run does what its plan said.

`World.run` compares what each phase did with the plan, and sees that planning writes nothing. Before some runs another
is killed between two commits. The tables are compared, too: after every step a second run has nothing to do, and after
all they are those of one run from nothing.
"""

import json
import random
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image, UnidentifiedImageError
from world import PHASES, QUIET, World

from tokenmill.pipeline.catalog.tables import Catalog, Table
from tokenmill.pipeline.config import load
from tokenmill.pipeline.run.run import Run
from tokenmill.pipeline.run.runner import run_phases

NUM_STEPS = 6
PER_RUN = ("run_id", "last_seen_run")


class History:
    """Random changes of a world, from a seed; of names with extensions that do not fit, and rules on them, or not."""

    def __init__(self, world: World, seed: int, has_names: bool):
        self.world, self.random, self.made, self.has_names = world, random.Random(seed), 0, has_names
        self.changes = [self.add, self.change, self.touch, self.rename, self.delete, self.recaption, self.copy]
        self.changes += [self.rule, self.measure, self.area, self.captioner, self.length, self.near, self.resize]
        self.changes += [self.spoil, self.shards]
        self.changes += [self.names, self.rename, self.copy] if has_names else []

    def pictures(self):
        return sorted(path for path in self.world.photos.iterdir() if path.suffix != ".txt")

    def some(self):
        return self.random.choice(self.pictures())

    def extension(self) -> str:
        return self.random.choice([".png", ".jpg", ""]) if self.has_names else ".png"

    def add(self) -> None:
        self.made += 1
        self.world.draw(f"new{self.made}", self.random.choice([24, 40, 64, 80]), seed=100 + self.made)

    def change(self) -> None:
        self.made += 1
        self.world.draw(self.some().stem, self.random.choice([24, 40, 64, 80]), seed=100 + self.made)

    def touch(self) -> None:
        self.some().touch()

    def rename(self) -> None:
        self.made += 1
        path = self.some()
        path.rename(path.with_name(f"moved{self.made}{self.extension()}"))

    def copy(self) -> None:
        self.made += 1
        path = self.some()
        path.with_name(f"copy{self.made}{self.extension()}").write_bytes(path.read_bytes())

    def delete(self) -> None:
        if len(self.pictures()) > 2:
            self.some().unlink()

    def recaption(self) -> None:
        self.made += 1
        self.some().with_suffix(".txt").write_text(f"words {self.made}")

    def rule(self) -> None:
        self.world.sets.append(f'curate.decide.image_rules.large="width_px >= {self.random.choice([20, 32, 50, 70])}"')

    def names(self) -> None:
        rule = self.random.choice(["extension_fits", "extension_fits or width_px > 60", "width_px > 0"])
        self.world.sets.append(f'curate.decide.image_rules.honest="{rule}"')

    def measure(self) -> None:
        self.world.sets.append(f"curate.score.max_pixels={self.random.choice([1000, 5000, 100_000])}")

    def area(self) -> None:
        self.world.sets.append(f"tokenize.frames.area_px={self.random.choice([1024, 4096])}")

    def length(self) -> None:
        self.world.sets.append(f"caption.max_caption_chars={self.random.choice([5, 7, 2000])}")

    def near(self) -> None:
        self.world.sets.append(f"curate.duplicates.near_radius={self.random.choice(['null', 2, 6])}")

    def shards(self) -> None:
        """Changes no result."""
        self.world.sets.append(f"cluster.shard_rows={self.random.choice([2, 3, 50_000])}")

    def resize(self) -> None:
        """A near duplicate."""
        self.made += 1
        with suppress(UnidentifiedImageError):
            Image.open(self.some()).resize((72, 72)).save(self.world.photos / f"near{self.made}.png")

    def spoil(self) -> None:
        self.some().write_bytes(f"no picture {self.made}".encode())

    def captioner(self) -> None:
        self.world.sets.append(f"caption.use={self.random.choice(['[source]', '[]', '{source: 1.0}'])}")


class Killed(BaseException):
    """As kill -9: nobody catches it."""


def kill(world: World, num_commits: int, is_written: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends before or after its commit number `num_commits`, and leaves no record."""
    write, left = Table._write_version, [num_commits]

    def until(self, *args: Any) -> None:
        left[0] -= 1
        if left[0] < 0 and not is_written:
            raise Killed
        write(self, *args)
        if left[0] < 0:
            raise Killed

    with monkeypatch.context() as patched, suppress(Killed):
        patched.setattr(Table, "_write_version", until)
        patched.setattr(Run, "record", lambda _: None)
        run_phases(load(world.path, world.sets), PHASES, "run", QUIET)


def contents(root: str, use: Iterable[str]) -> dict[str, list[str]]:
    """Rows that training reads, of captions those of `use`, without what differs from run to run."""
    catalog, in_use = Catalog(root), pc.field("captioner").isin(pa.array(list(use), pa.string()))
    return {
        table.name: sorted(
            json.dumps({name: value for name, value in row.items() if name not in PER_RUN}, sort_keys=True)
            for row in table.scan(where=where).to_pylist()
        )
        for table, where in ((catalog.captions, in_use), (catalog.tokens, None))
    }


# 19: what is measured anew, and then rejected, is not encoded. 22: a caption changes while its file is measured anew.
@pytest.mark.parametrize(("seed", "has_names"), [(19, False), (22, False), (2, True)])
def test_a_run_does_what_its_plan_said(tmp_path, monkeypatch, seed, has_names):
    world = World(tmp_path)
    history, done = History(world, seed, has_names), []
    world.run()
    for _ in range(NUM_STEPS):
        changes = [history.random.choice(history.changes) for _ in range(history.random.randint(1, 3))]
        done.append([change.__name__ for change in changes])
        for change in changes:
            change()
        if history.random.random() < 0.5:
            done[-1].append("kill")
            kill(world, history.random.randrange(8), history.random.random() < 0.5, monkeypatch)
        world.run()
        again = run_phases(load(world.path, world.sets), PHASES, "run", QUIET)
        assert [report.num_read for report in again.reports] == [0, 0, 0], done
    world.run("curate.duplicates.near_radius=null")  # who was kept first would stay
    fresh = str(tmp_path / "fresh")
    run_phases(load(world.path, [*world.sets, f"root={fresh}"]), PHASES, "run", QUIET)
    use = load(world.path, world.sets).caption.use
    assert contents(str(tmp_path / "root"), use) == contents(fresh, use), done
