"""Random kills (-9) of the driver, its worker and its servers while a run captions: what is lost, and asked again.

    python benchmarks/caption_kills.py [--media 2000] [--kills 20] [--seed 0] [--ray]

Engine `vllm` with two scripted servers (tests/pipeline/serving/fake_vllm.py), which write down each request that they
take and answer. A killed driver is started again, once its worker is gone. In flight at a death is what had begun
after it and was not answered before it; a request counts once. Exit code 1 when a medium ends without its caption, or
when more was asked than media and what was in flight.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.storage.cpu import describe

SERVING = Path(__file__).resolve().parent.parent / "tests" / "pipeline" / "serving"
sys.path.insert(0, str(SERVING))
GAP_S = (0.5, 4.0)


class World:
    """A folder of pictures, its config, and the diary of its servers."""

    def __init__(self, folder: Path, num_media: int, with_ray: bool):
        from programs import program

        self.folder, self.diary, photos, model = folder, folder / "diary", folder / "photos", folder / "model"
        for made in (photos, model):
            made.mkdir()
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(b"weights")
        self.diary.touch()
        rng = np.random.default_rng(0)
        for i in range(num_media):
            small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize((64, 64)).save(photos / f"{i}.png")
        args = ["--fake-diary", str(self.diary), "--fake-delay-s", "0.2", "--fake-start-s", "0.2"]
        how = {"command": program(folder), "gpus_per_server": 0, "servers": 2, "args": args, "restarts": 100}
        how |= {"most_at_once": 8}
        mine = {"engine": "vllm", "model": str(model), "resources": how}
        document = {"root": str(folder / "root"), "sources": [{"uri": str(photos)}]}
        document |= {"curate": {"decide": {"image_rules": {}}}, "caption": {"captioner": "mine"}}
        document["caption"]["captioners"] = {"mine": mine}
        document["cluster"] = {"num_cpus": 2, "local_rows": 0 if with_ray else 10 * num_media}
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(document))

    def command(self, phase: str) -> list[str]:
        return [sys.executable, "-m", "tokenmill", phase, str(self.config)]

    def start(self) -> "subprocess.Popen[bytes]":
        """The driver."""
        with (self.folder / "output").open("ab") as output:
            return subprocess.Popen(self.command("caption"), start_new_session=True, stdout=output, stderr=output)

    def noted(self, sign: str) -> set[str]:
        """Requests that were taken (+), answered (-), or only looked whether a server is well (?)."""
        return {line[1:] for line in self.diary.read_text().splitlines() if line[0] == sign}

    def victims(self, kind: str, driver: int) -> list[int]:
        """Process ids: of the driver, of its stage workers, or of servers without their keepers."""
        if kind == "driver":
            return [driver]
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes()
            except OSError:
                continue
            is_server = b"--served-model-name" in line and str(self.folder).encode() in line
            if kind == "server" and is_server and b"keeper.py" not in line:
                found.append(int(path.parent.name))
            is_worker = b"MapWorker" in line or b"table.worker_process" in line
            if kind == "worker" and is_worker and session(int(path.parent.name)) == driver:
                found.append(int(path.parent.name))
        return found


def session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def main(num_media: int, num_kills: int, seed: int, with_ray: bool) -> int:
    with tempfile.TemporaryDirectory() as name:
        world = World(Path(name), num_media, with_ray)
        subprocess.run(world.command("curate"), check=True, capture_output=True)
        began = time.monotonic()
        code, killed, in_flight = disturbed(world, num_kills, random.Random(seed))
        rows = Catalog(str(world.folder / "root")).captions.scan(["caption"])["caption"]
        num_asked, seconds = len(world.noted("+")), time.monotonic() - began
        num_rows, extra = len(rows) - rows.null_count, num_asked - num_media
        print(
            f"{num_media} media, kills {dict(killed)}, {seconds:.0f} s: exit code {code}, {num_rows} captions, "
            f"{num_asked} requests: {extra} more than media; in flight at the kills {len(in_flight)}; "
            f"{len(world.noted('?'))} looks whether a server is well",
            flush=True,
        )
        if code:
            print((world.folder / "output").read_text()[-3000:])
        return int(code != 0 or num_rows != num_media or extra > len(in_flight))


def disturbed(world: World, num_kills: int, chance: random.Random) -> tuple[int, Counter[str], set[str]]:
    """The exit code of the last driver, who was killed, and the requests in flight then."""
    killed, in_flight = Counter[str](), set[str]()
    driver = world.start()
    try:
        while True:
            wait_until, before = time.monotonic() + chance.uniform(*GAP_S), len(world.noted("+"))
            while driver.poll() is None and (time.monotonic() < wait_until or len(world.noted("+")) == before):
                time.sleep(0.1)  # something was asked since the kill before
            if driver.poll() is not None or killed.total() == num_kills:
                return driver.wait(), killed, in_flight
            kind = chance.choice(["driver", "worker", "server"])
            if not (found := world.victims(kind, driver.pid)):
                continue
            answered = world.noted("-")
            os.kill(chance.choice(found), signal.SIGKILL)
            in_flight |= world.noted("+") - answered
            killed[kind] += 1
            if kind == "driver":
                driver.wait()
                while world.victims("worker", driver.pid):  # Ray's outlive it for a moment, and ask on
                    answered = world.noted("-")
                    time.sleep(0.02)
                in_flight |= world.noted("+") - answered
                driver = world.start()
    finally:
        driver.kill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ray", action="store_true", help="else in processes of the driver")
    given = parser.parse_args()
    print(describe(), flush=True)
    sys.exit(main(given.media, given.kills, given.seed, given.ray))
