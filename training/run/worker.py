"""One worker of a training: plan, shards and checkpoints in, checkpoints, log and model out. Runs with Ray or without.

A step sums the gradients of its packs, one pack per forward pass, and divides by the loss weight of all packs on all
workers. Dropout is seeded by pack. So a step computes the same whatever the number of workers, and a resumed run equals
the uninterrupted one bit for bit (tests/training/run/test_worker.py).
"""

import hashlib

import torch

from tokenmill import storage
from tokenmill.storage.run_log import Record, TrainLog, read_log
from tokenmill.training.checkpoints.checkpoint import Checkpoints
from tokenmill.training.job import DONE, Asked, TrainJob
from tokenmill.training.model.optimizer import make_optimizers, schedule, set_learning_rate
from tokenmill.training.pack import Pack
from tokenmill.training.parallel.workers import Notices, Workers
from tokenmill.training.resources import TrainResources
from tokenmill.training.run.finish import finish
from tokenmill.training.run.objective import loader_of, objective_of
from tokenmill.training.run.prepare import Prepared, load_prepared, prepare
from tokenmill.training.run.sight import Sight

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

    Raises TrainingError for a folder of another job, and where the job's guard says stop.
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
        self.model = objective_of(job, ready, resources.recompute).train()
        self.workers = Workers(self.model, config, resources, rank, world, device, notices)
        self.peak_per_s = self.workers.peak_per_s(config.dtype)
        dtype = getattr(torch, config.dtype)
        self.optimizers = make_optimizers(self.model, config.optimizer, dtype, rank, world)
        meta = {"plan": ready.summary["plan"], "tokens_version": job.tokens_version}
        keep = resources.keep_checkpoints
        self.checkpoints = Checkpoints(job.run_uri, self.model, self.optimizers, meta, keep, world)
        self.start = self.checkpoints.resume()
        self.loader = loader_of(job, ready, self.model, self.workers, self.start, resources.cache_mb << 20)
        self.sight = Sight(job, ready, self.loader, self.workers, self.checkpoints.seen(self.start))

    def run(self) -> None:
        try:
            self._run()
        finally:  # also before an error: what is written is nearly there
            self.checkpoints.wait()

    def _run(self) -> None:
        rank, device = self.workers.rank, self.workers.device
        group, num_groups = self.workers.group, self.workers.num_groups
        log = TrainLog(self.job.run_uri, self.start) if rank == 0 else None
        before = read_log(self.job.run_uri, "seconds") if rank == 0 else []
        self.sight.begin(before[-1]["seconds"] if before else 0.0)
        num_steps, every = self.ready.plan.num_steps, self.resources.checkpoint_every_steps
        window = torch.zeros(self.model.num_sums + _NUM_FIGURES, dtype=torch.float64, device=device)
        for step, packs in self.sight.waiting(self.loader.steps(self.start, group, num_groups)):
            window += self.step(step, packs)
            done = step + 1
            is_saved = done % every == 0 or done == num_steps or self.workers.asked
            if done % self.resources.log_every_steps == 0 or is_saved:
                record = self.record(done, window)
                window.zero_()
                if log is not None:
                    log.append(record)
            for record in self.sight.looks(done) if self.workers.asked != Asked.STOP else ():
                if log is not None:
                    log.append(record)
            if is_saved:
                if log is not None:
                    log.flush()
                self.checkpoints.begin(done, self.sight.seen)
            if self.workers.asked == Asked.STOP:
                break

    def step(self, step: int, packs: list[Pack]) -> torch.Tensor:
        """One optimizer step. Returns this worker's sums: those of the model, weighted loss, weight, tokens, and pairs
        of them that see each other.
        """
        config, workers, device = self.job.config, self.workers, self.workers.device
        weight = sum(self.model.loss_weight(pack) for pack in packs) if workers.is_first else 0.0
        total_weight = workers.agree(weight)
        numbers = self.ready.plan.step_packs(step, workers.group, workers.num_groups)
        figures = torch.zeros(self.model.num_sums + _NUM_FIGURES, dtype=torch.float64, device=device)
        num_passes = -(-config.data.batch_packs // workers.num_groups)  # the same on all workers; some may be empty
        for i in range(num_passes):
            pack = packs[i] if i < len(packs) else Pack.empty()
            torch.manual_seed(_pack_seed(config.seed, numbers[i] if i < len(packs) else 0))
            with workers.synchronized(i == num_passes - 1):
                # each weight is used once; kept casts would be a copy of the whole model where it is spread
                in_bf16 = config.dtype == "bfloat16"
                with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16, cache_enabled=False):
                    loss, sums = workers.forward(*self.model.inputs(pack, device))
                # gradients become the mean over workers; the loss is a sum
                (loss * (workers.num_averaged / total_weight).float()).backward()
            parts = [sums.flatten().double(), loss.detach().double()[None]]
            counts = [0.0, pack.num_tokens, pack.num_pairs] if workers.is_first else [0.0] * 3
            figures += torch.cat([*parts, figures.new_tensor(counts)])
        figures[-3] = weight
        is_taken = self.sight.takes(step + 1, figures, total_weight)
        share = schedule(config.optimizer, step, self.ready.plan.num_steps)
        set_learning_rate(self.optimizers, config.optimizer, share)
        for optimizer in self.optimizers:
            if is_taken:
                optimizer.step()
            optimizer.zero_grad()
        return figures

    def record(self, done: int, window: torch.Tensor) -> Record:
        """The log line of the steps in `window`, all workers together."""
        values = self.workers.sum(window).tolist()
        loss, weight, num_tokens, num_pairs = values[-4:]
        record: Record = {"step": done}
        if weight:  # none where all were skipped
            record |= {"loss": loss / weight} | self.model.told(values[: self.model.num_sums])
        optimizer = self.job.config.optimizer
        record["lr"] = optimizer.lr * schedule(optimizer, done - 1, self.ready.plan.num_steps)
        record |= {"tokens": int(num_tokens), "workers": self.workers.world}
        return record | self.sight.told(num_tokens, self.model.flops.of(num_tokens, num_pairs) / self.peak_per_s)


def _pack_seed(seed: int, pack: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{pack}".encode(), digest_size=7).digest(), "little")
