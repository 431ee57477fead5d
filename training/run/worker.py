"""One worker of a training: plan, shards and checkpoints in, checkpoints, log and model out. Runs with Ray or without.

A step sums the gradients of its packs, one pack per forward pass, and divides by the loss weight of all packs on all
workers. Dropout is seeded by pack. So a step computes the same whatever the number of workers, and a resumed run equals
the uninterrupted one bit for bit (tests/training/run/test_worker.py).
"""

import hashlib
import math
import time

import torch
from torch import nn

from tokenmill import storage
from tokenmill.storage.errors import TrainingError
from tokenmill.storage.run_log import Record, TrainLog, read_log
from tokenmill.training.config import TrainResources
from tokenmill.training.job import DONE, Asked, TrainJob
from tokenmill.training.model.model import build_model
from tokenmill.training.model.optimizer import make_optimizers, schedule, set_learning_rate
from tokenmill.training.pack import Pack
from tokenmill.training.run.checkpoint import Checkpoints
from tokenmill.training.run.finish import finish
from tokenmill.training.run.objective import loader_of, objective_of
from tokenmill.training.run.parallel import Notices, Workers
from tokenmill.training.run.prepare import Prepared, load_prepared, prepare

_NUM_FIGURES = 4  # of a step, besides the model's sums


def train_worker(
    job: TrainJob,
    resources: TrainResources | None = None,
    rank: int = 0,
    world: int = 1,
    device: torch.device | None = None,
    notices: Notices | None = None,
) -> None:
    """Train from the newest checkpoint to the end, or until `notices`, which one worker reads, ask to stop; then a
    checkpoint is written first. With `world` > 1 a process group must be up.

    Raises TrainingError for a folder of another job, and when the loss is no longer finite.
    """
    resources = resources or TrainResources()
    device = device or torch.device("cuda" if resources.use_gpu else "cpu")
    torch.set_num_threads(resources.threads or max(1, round(resources.cpus_per_worker)))
    prepare(job)
    if storage.exists(job.at(DONE)):
        return
    trainer = _Trainer(job, resources, load_prepared(job), rank, world, device, notices)
    trainer.run()
    if trainer.workers.asked == Asked.STOP:
        if notices is not None:
            notices.say_stopped()
        return
    finish(job, trainer.ready, trainer.model, trainer.start, rank)


class _Trainer:
    def __init__(
        self,
        job: TrainJob,
        resources: TrainResources,
        ready: Prepared,
        rank: int,
        world: int,
        device: torch.device,
        notices: Notices | None = None,
    ):
        config = job.config
        self.job, self.resources, self.ready = job, resources, ready
        model_config = config.model.model_copy(update={"init_from": job.init_from})
        lm = build_model(model_config, ready.layout.vocabulary, config.data.context_tokens, config.seed)
        if resources.recompute:
            lm.activation_checkpointing_enable({"use_reentrant": False})
        self.model = objective_of(job, lm).to(device).train()
        self.workers = Workers(self.model, rank, world, device, resources.spread_model, notices)
        self.peak_per_s = self.workers.peak_per_s(config.dtype)
        dtype = getattr(torch, config.dtype)
        self.optimizers = make_optimizers(self.model, config.optimizer, dtype, rank, world)
        meta = {"plan": ready.summary["plan"], "tokens_version": job.tokens_version}
        keep = resources.keep_checkpoints
        self.checkpoints = Checkpoints(job.run_uri, self.model, self.optimizers, meta, keep, world)
        self.start = self.checkpoints.resume()
        self.loader = loader_of(job, ready, self.model, self.workers, self.start, resources.cache_mb << 20)

    def run(self) -> None:
        try:
            self._run()
        finally:  # also before an error: what is written is nearly there
            self.checkpoints.wait()

    def _run(self) -> None:
        rank, world, device = self.workers.rank, self.workers.world, self.workers.device
        log = TrainLog(self.job.run_uri, self.start) if rank == 0 else None
        before = read_log(self.job.run_uri, "seconds") if rank == 0 else []
        clock = _Clock(before[-1]["seconds"] if before else 0.0)
        num_steps, every = self.ready.plan.num_steps, self.resources.checkpoint_every_steps
        window = torch.zeros(self.model.num_sums + _NUM_FIGURES, dtype=torch.float64, device=device)
        for step, packs in self.loader.steps(self.start, rank, world):
            window += self.step(step, packs)
            done = step + 1
            is_saved = done % every == 0 or done == num_steps or self.workers.asked
            if done % self.resources.log_every_steps == 0 or is_saved:
                record = self.record(done, window, clock)
                window.zero_()
                if log is not None:
                    log.append(record)
            if is_saved:
                if log is not None:
                    log.flush()
                self.checkpoints.begin(done)
            if self.workers.asked == Asked.STOP:
                break

    def step(self, step: int, packs: list[Pack]) -> torch.Tensor:
        """One optimizer step. Returns this worker's sums: those of the model, weighted loss, weight, tokens, and pairs
        of them that see each other.
        """
        config, workers, device = self.job.config, self.workers, self.workers.device
        weight = sum(self.model.loss_weight(pack) for pack in packs)
        total_weight = workers.agree(weight)
        numbers = self.ready.plan.step_packs(step, workers.rank, workers.world)
        figures = torch.zeros(self.model.num_sums + _NUM_FIGURES, dtype=torch.float64, device=device)
        num_passes = -(-config.data.batch_packs // workers.world)  # the same on all workers; some may be empty
        for i in range(num_passes):
            pack = packs[i] if i < len(packs) else Pack.empty()
            torch.manual_seed(_pack_seed(config.seed, numbers[i] if i < len(packs) else 0))
            with workers.synchronized(i == num_passes - 1):
                with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
                    loss, sums = workers.forward(*self.model.inputs(pack, device))
                # gradients become the mean over workers; the loss is a sum
                (loss * (workers.world / total_weight).float()).backward()
            parts = [sums.flatten().double(), loss.detach().double()[None]]
            figures += torch.cat([*parts, figures.new_tensor([0.0, pack.num_tokens, pack.num_pairs])])
        figures[-3] = weight
        nn.utils.clip_grad_norm_(self.model.parameters(), config.optimizer.clip_norm)
        share = schedule(config.optimizer, step, self.ready.plan.num_steps)
        set_learning_rate(self.optimizers, config.optimizer, share)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return figures

    def record(self, done: int, window: torch.Tensor, clock: "_Clock") -> Record:
        """The log line of the steps in `window`, all workers together."""
        values = self.workers.sum(window).tolist()
        loss, weight, num_tokens, num_pairs = values[-4:]
        if not math.isfinite(loss):
            raise TrainingError(
                f"step {done}: the loss is {loss}; lower train.optimizer.lr, delete {self.job.at('plan.json')} "
                "and the checkpoints, and train again"
            )
        record: Record = {"step": done, "loss": loss / weight}
        record |= self.model.told(values[: self.model.num_sums])
        optimizer = self.job.config.optimizer
        record["lr"] = optimizer.lr * schedule(optimizer, done - 1, self.ready.plan.num_steps)
        record |= {"tokens": int(num_tokens), "workers": self.workers.world}
        return record | clock.lap(num_tokens, self.model.flops.of(num_tokens, num_pairs) / self.peak_per_s)


class _Clock:
    def __init__(self, seconds: float):
        self._seconds, self._last_s = seconds, time.monotonic()

    def lap(self, num_tokens: float, at_peak_s: float) -> dict[str, float]:
        """Speeds since the last one; `at_peak_s` is what it would have taken at the devices' peak."""
        now = time.monotonic()
        lap_s = now - self._last_s
        self._seconds, self._last_s = self._seconds + lap_s, now
        speeds = {"tokens_per_s": round(num_tokens / lap_s, 1), "seconds": round(self._seconds, 3)}
        return speeds if math.isnan(at_peak_s) else speeds | {"mfu": round(at_peak_s / lap_s, 4)}


def _pack_seed(seed: int, pack: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{pack}".encode(), digest_size=7).digest(), "little")
