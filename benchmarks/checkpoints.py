"""What checkpoints cost a training: the share of the step loop that they block, and reading them with other workers.

    at once      `Checkpoints.begin`: a copy in memory; DCP writes it while the next steps go on
    waiting      the same, waited for, as a checkpoint costs that is written between two steps
    gathered     as releases before wrote it: the whole model and all states to the first worker, and by it to the disk

The demo's model, one worker and two (gloo), one thread each. `blocked` is what a step waits for, `slowed` what the ten
steps after it take more than others, both as shares of 50 steps; it is written each 15, to measure more. Then one of
each number of workers from 1 to 4 is read by each.
"""

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from train_step import CODEBOOK, shard

from tokenmill.pipeline.config import load
from tokenmill.pipeline.demo.show import CONFIG
from tokenmill.storage import cpu
from tokenmill.training.checkpoints.checkpoint import Checkpoints
from tokenmill.training.job import TrainJob
from tokenmill.training.resources import TrainResources
from tokenmill.training.run.prepare import load_prepared, prepare
from tokenmill.training.run.worker import _Trainer

INTERVAL = 50
EVERY = 15
AFTER = 10  # steps while a checkpoint may be being written
GOAL = 0.05
WORLDS = (1, 2, 3, 4)


def at_once(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.begin(step)


def waiting(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.begin(step)
    checkpoints.wait()


def gathered(checkpoints: Checkpoints, step: int) -> None:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, state = get_state_dict(checkpoints._model, checkpoints._optimizers, options=options)
    if weights:
        with tempfile.TemporaryDirectory(dir=checkpoints._run_uri) as name:
            save_file({key: value.contiguous() for key, value in weights.items()}, f"{name}/model.safetensors")
            torch.save(state, f"{name}/optimizer.pt")
    if dist.is_initialized():
        dist.barrier()


WAYS: dict[str, Callable[[Checkpoints, int], None]] = {f.__name__: f for f in (at_once, waiting, gathered)}


def trainer_of(job: TrainJob, rank: int, world: int, is_spread: bool) -> _Trainer:
    """A worker as it stands before its first step, or after what it resumes."""
    resources = TrainResources(threads=1, spread_model=is_spread)
    return _Trainer(job, resources, load_prepared(job), rank, world, torch.device("cpu"))


def steps(job: TrainJob, rank: int, world: int, way: str, num_steps: int) -> dict[str, float]:
    """Train, with a checkpoint each EVERY steps."""
    trainer = trainer_of(job, rank, world, is_spread=False)
    took, blocked = [], []
    for step, packs in trainer.loader.steps(0, rank, world):
        started = time.perf_counter()
        trainer.step(step, packs)
        took.append(time.perf_counter() - started)
        if (step + 1) % EVERY == 0:
            started = time.perf_counter()
            WAYS[way](trainer.checkpoints, step + 1)
            blocked.append(time.perf_counter() - started)
        if step + 1 == num_steps:
            break
    trainer.checkpoints.wait()
    one = median(took[3:])
    others = [each for number, each in enumerate(took) if number >= 3 and number % EVERY >= AFTER]
    after = [sum(took[at : at + AFTER]) for at in range(EVERY, num_steps - AFTER + 1, EVERY)]
    return {
        "step_s": one,
        "blocked": median(blocked) / (INTERVAL * one),
        "slowed": (median(after) - AFTER * median(others)) / (INTERVAL * one),
    }


def restores(job: TrainJob, rank: int, world: int, is_spread: bool) -> dict[str, float]:
    """Seconds for each reading of the checkpoints that stand there; then one of its own is written."""
    trainer = trainer_of(job, rank, world, is_spread)
    found = {}
    for wrote in WORLDS:
        started = time.perf_counter()
        trainer.checkpoints.load(wrote)
        found[str(wrote)] = time.perf_counter() - started
    return found


def write_one(job: TrainJob, rank: int, world: int, is_spread: bool) -> dict[str, float]:
    """The checkpoint after a step, named by the number of workers that write it."""
    trainer = trainer_of(job, rank, world, is_spread)
    trainer.checkpoints._keep = len(WORLDS)
    trainer.step(0, next(trainer.loader.steps(0, rank, world))[1])
    trainer.checkpoints.begin(world)
    trainer.checkpoints.wait()
    return {}


def on_workers(folder: Path, world: int, call: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """What the first of `world` processes returns."""
    (folder / "call.pickle").write_bytes(pickle.dumps((world, call.__name__, arguments)))
    (folder / "store").unlink(missing_ok=True)
    command = [sys.executable, __file__, "--part", str(folder), "--rank"]
    processes = [subprocess.Popen([*command, str(rank)]) for rank in range(world)]
    if codes := [process.wait() for process in processes if process.wait()]:
        raise SystemExit(f"a worker ended with {codes}")
    return json.loads((folder / "answer.json").read_text())


def part(folder: Path, rank: int) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    world, name, (job, *arguments) = pickle.loads((folder / "call.pickle").read_bytes())
    if world > 1:
        store = dist.FileStore(str(folder / "store"), world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(minutes=5))
    answer = globals()[name](job, rank, world, *arguments)
    if rank == 0:
        (folder / "answer.json").write_text(json.dumps(answer))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=70, help="of each")
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is not None:
        part(options.part, options.rank)
        return
    print(cpu.describe())
    given = load(CONFIG).train.what
    config = given.model_copy(update={"dtype": cpu.quick_dtype(on_gpu=False)})
    with tempfile.TemporaryDirectory(prefix="tokenmill-bench-") as name:
        folder, uri = Path(name), shard(Path(name) / "part-0.parquet", 1200)
        shares = []
        for world in (1, 2):
            for way in WAYS:
                job = TrainJob(config, [uri], CODEBOOK, f"{name}/{way}-{world}")
                prepare(job)
                found = on_workers(folder, world, steps, job, way, options.steps)
                shares.append(found["blocked"] if way == "at_once" else 0.0)
                print(
                    f"{world} worker(s), {way:9} step {found['step_s'] * 1e3:4.0f} ms, "
                    f"blocked {found['blocked']:6.2%}, slowed {found['slowed']:6.2%} of {INTERVAL} steps",
                    flush=True,
                )
        is_met = max(shares) < GOAL
        print(f"at once: {max(shares):.2%} ({'met' if is_met else 'MISSED'}: below {GOAL:.0%})")
        for is_spread in (False, True):
            job = TrainJob(config, [uri], CODEBOOK, f"{name}/restore-{is_spread}")
            prepare(job)
            for world in WORLDS:
                on_workers(folder, world, write_one, job, is_spread)
            size = sum(file.stat().st_size for file in Path(job.run_uri, "checkpoints/step_000004").iterdir())
            what = f"{'spread' if is_spread else 'whole'} weights, {size / 1e6:.0f} MB"
            print(f"{what}; seconds to read, written by 1 to 4:")
            for world in WORLDS:
                seconds = on_workers(folder, world, restores, job, is_spread)
                print(f"  read by {world}: " + "  ".join(f"{seconds[str(wrote)]:.2f}" for wrote in WORLDS), flush=True)


if __name__ == "__main__":
    main()
