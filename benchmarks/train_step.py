"""Training in tokens/s on a CPU, beside what people write, step by step in turns, in one run.

    ours              training/run/worker.py: documents packed, each blind to the others, the loss in chunks, AdamW
    Muon              the same with Muon for the matrices of the layers
    plain, packed     a loop over transformers' Emu3ForCausalLM with sdpa, both packs of a step at once, documents kept
                      apart by a mask of all pairs, cross-entropy on all logits, fused AdamW
    plain, padded     the same, a document a row, no mask: rows are causal and padded behind
    ..., compiled     each by torch.compile
    Trainer, padded   transformers' Trainer, a document a row with its attention mask, as people use it
    Trainer, flat     the same with DataCollatorWithFlattening, which tells documents apart by their positions

All have the same model, the same documents a step, dtype (bfloat16 is autocast) and gradients clipped. Tokens are those
that are no padding. Ratios are medians over rounds. Goals: 1.0 of the quickest plain loop, 1.3 of the quicker Trainer.

Three models: the demo's on its documents (a caption of eight words, 8x8 codes), one of 8 layers of 512 on 16x16 codes,
and that with 184,622 classes, beside the padded ones, which are the quicker, one after the other: each holds 3.4 GB.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from torch.nn import functional
from transformers import DataCollatorWithFlattening, Emu3ForCausalLM, Trainer, TrainerCallback, TrainingArguments
from turns import Turn, in_turns

from tokenmill.pipeline.config import load
from tokenmill.pipeline.demo.show import CONFIG
from tokenmill.storage import cpu
from tokenmill.tokenizer.shards import TOKENS, write_parquet
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.data.loader import Loader
from tokenmill.training.job import Asked, TrainJob
from tokenmill.training.model.model import build_model
from tokenmill.training.pack import Pack
from tokenmill.training.resources import TrainResources
from tokenmill.training.run.prepare import load_prepared, prepare
from tokenmill.training.run.worker import train_worker

CODEBOOK = 4608  # of the built-in tokenizer
EMU3_CLASSES = 184_622
WORDS = ("red", "green", "blue", "circle", "square", "left", "right", "above", "of", "a", "the", "two")
LARGER = {"hidden_size": 512, "num_layers": 8, "num_heads": 8, "num_kv_heads": 8, "intermediate_size": 1408}
CASES = {  # sizes that differ from the demo's, codes a side, classes (null: of the codebook and text), packs a step
    "demo": ({}, 8, None, 2),
    "larger": (LARGER, 16, None, 2),
    "larger, 184,622 classes": (LARGER, 16, EMU3_CLASSES, 1),
}
GOALS = {"plain": 1.0, "Trainer": 1.3}


def shard(path: Path, count: int, side: int = 8) -> str:
    """`count` images of side x side random codes with captions of eight words."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "media_id": f"{number:032x}",
            "kind": "image",
            "codes": rng.integers(0, CODEBOOK, side * side).tolist(),
            "grid_t": 1,
            "grid_h": side,
            "grid_w": side,
            "frames_trimmed": 0,
            "caption": " ".join(rng.choice(WORDS, 8)),
            "fingerprint": "f" * 16,
            "run_id": "benchmark",
        }
        for number in range(count)
    ]
    write_parquet(pa.Table.from_pylist(rows, schema=TOKENS), str(path), 512)
    return str(path)


@dataclass
class Course:
    """What all contestants learn: `steps`, each the packs of an optimizer step."""

    job: TrainJob
    steps: list[list[Pack]]
    vocabulary: Vocabulary
    make: Callable[[], Emu3ForCausalLM]

    @classmethod
    def of(cls, job: TrainJob, classes: int | None) -> "Course":
        """`classes`: as many, by a codebook of which the shards use a part."""
        prepare(job)
        if classes is not None:
            more = classes - load_prepared(job).layout.vocabulary.size
            job = TrainJob(job.config, job.shard_uris, job.codebook_size + more, f"{job.run_uri}-{classes}")
            prepare(job)
        ready, config = load_prepared(job), job.config
        vocabulary = ready.layout.vocabulary
        sizes = config.model.model_copy(update={"init_from": None})

        def make() -> Emu3ForCausalLM:
            lm = Emu3ForCausalLM(build_model(sizes, vocabulary, config.data.context_tokens, config.seed).config)
            lm.set_attn_implementation("sdpa")
            return lm.train()

        loader = Loader(ready.plan, ready.index, job.shard_uris, ready.layout, config.data.pack_tokens, 64 << 20)
        return cls(job, [packs for _, packs in loader.steps(0, 0, 1)], vocabulary, make)

    def num_tokens(self, step: int) -> int:
        return sum(pack.num_tokens for pack in self.steps[step])

    def documents(self, step: int) -> list[np.ndarray]:
        return [pack.ids[pack.documents == n] for pack in self.steps[step] for n in range(pack.documents.max() + 1)]


@dataclass
class OnTurn:
    """Called by each step of the product as the one who asks it to save or to stop; here it takes turns."""

    course: Course
    turn: Turn
    step: int = 0

    def take(self) -> Asked:
        self.turn(self.course.num_tokens(self.step))
        self.step += 1
        return Asked.NOTHING

    def say_stopped(self) -> None: ...


def on_cpu(threads: int) -> TrainResources:
    return TrainResources(threads=threads, log_every_steps=10, checkpoint_every_steps=10**9)


def ours(course: Course, muon_lr: float | None, resources: TrainResources, turn: Turn) -> None:
    optimizer = course.job.config.optimizer.model_copy(update={"muon_lr": muon_lr})
    config = course.job.config.model_copy(update={"optimizer": optimizer})
    job = TrainJob(config, course.job.shard_uris, course.job.codebook_size, f"{course.job.run_uri}-{muon_lr}")
    train_worker(job, resources, notices=OnTurn(course, turn))


def packed(course: Course, step: int) -> dict[str, torch.Tensor]:
    """Both packs of a step: (B, T), and which pairs see each other, (B, 1, T, T)."""
    packs = course.steps[step]
    ids, documents, positions = (
        torch.from_numpy(np.stack([getattr(pack, name) for pack in packs])).long()
        for name in ("ids", "documents", "positions")
    )
    labels = torch.where((positions > 0) & (documents >= 0), ids, -100)
    is_seen = (documents[:, None, :, None] == documents[:, None, None, :]).tril()
    return {"ids": ids, "labels": labels, "attention_mask": is_seen, "position_ids": positions}


def padded(course: Course, step: int) -> dict[str, torch.Tensor]:
    """A document a row, padded behind: (documents, longest)."""
    return rows(course.documents(step))


def rows(documents: list[np.ndarray]) -> dict[str, torch.Tensor]:
    ids = torch.zeros((len(documents), max(map(len, documents))), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, document in enumerate(documents):
        ids[row, : len(document)] = labels[row, : len(document)] = torch.from_numpy(document)
    return {"ids": ids, "labels": labels}


def plain(
    course: Course,
    batch: Callable[[Course, int], dict[str, torch.Tensor]],
    is_compiled: bool,
    turn: Turn,
    device: str = "cpu",
    recompute: bool = False,
) -> None:
    """A training as a good engineer writes it."""
    model, config = course.make().to(device), course.job.config
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    def loss_of(ids: torch.Tensor, labels: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids, use_cache=False, **more).logits[:, :-1]
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten())

    call = torch.compile(loss_of, dynamic=batch is padded) if is_compiled else loss_of
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for step in range(len(course.steps)):
        turn(course.num_tokens(step))
        inputs = {name: each.to(device) for name, each in batch(course, step).items()}
        with torch.autocast(device, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            loss = call(**inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad()


class InOrder(Trainer):
    def _get_train_sampler(self, *_: Any, **__: Any) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer(course: Course, is_flat: bool, turn: Turn) -> None:
    """transformers' Trainer; its data set has the documents of a step as one item, so that steps are those of all."""

    class TakesTurns(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turn(course.num_tokens(state.global_step))

    def collate(items: list[list[np.ndarray]]) -> dict[str, torch.Tensor]:
        if is_flat:
            return flatten([{"input_ids": document.tolist()} for document in items[0]])
        batch = rows(items[0])
        return {"input_ids": batch["ids"], "labels": batch["labels"], "attention_mask": (batch["labels"] >= 0).long()}

    flatten = DataCollatorWithFlattening()
    arguments = TrainingArguments(
        output_dir=f"{course.job.run_uri}-trainer",
        per_device_train_batch_size=1,
        use_cpu=True,
        bf16=course.job.config.dtype == "bfloat16",
        max_grad_norm=course.job.config.optimizer.clip_norm,
        num_train_epochs=1,
        save_strategy="no",
        report_to="none",
        logging_steps=10**6,
        disable_tqdm=True,
    )
    data = [course.documents(step) for step in range(len(course.steps))]
    InOrder(course.make(), arguments, collate, data, callbacks=[TakesTurns()]).train()


def heats(case: str, course: Course, muon_lr: float | None, threads: int) -> list[dict[str, Callable[[Turn], None]]]:
    """Those who run together: memory holds only so many models."""
    us = {"ours": partial(ours, course, None, on_cpu(threads))}
    plains = {
        "plain, packed": partial(plain, course, packed, False),
        "plain, packed, compiled": partial(plain, course, packed, True),
        "plain, padded": partial(plain, course, padded, False),
        "plain, padded, compiled": partial(plain, course, padded, True),
    }
    trainers = {"Trainer, padded": partial(trainer, course, False), "Trainer, flat": partial(trainer, course, True)}
    if CASES[case][2] is None:
        return [us | {"Muon": partial(ours, course, muon_lr, on_cpu(threads))} | plains | trainers]
    others = {name: run for name, run in (plains | trainers).items() if "padded" in name}
    return [us | {name: run} for name, run in others.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="of each")
    parser.add_argument("--case", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--dtype", nargs="*", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    print(f"{cpu.describe()}; {options.threads} thread(s)")
    given = load(CONFIG).train.what
    found: dict[tuple[str, str], float] = {}
    for case in options.case:
        sizes, side, classes, batch_packs = CASES[case]
        with tempfile.TemporaryDirectory(prefix="tokenmill-bench-") as name:
            uri = shard(Path(name) / "part-0.parquet", 1200, side)
            for dtype in options.dtype:
                config = given.model_copy(
                    update={
                        "dtype": dtype,
                        "data": given.data.model_copy(update={"batch_packs": batch_packs}),
                        "optimizer": given.optimizer.model_copy(update={"steps": options.steps + 4, "muon_lr": None}),
                        "model": given.model.model_copy(update=sizes),
                    }
                )
                course = Course.of(TrainJob(config, [uri], CODEBOOK, f"{name}/{dtype}"), classes)
                for runs in heats(case, course, given.optimizer.muon_lr, options.threads):
                    rates = in_turns(runs, options.steps)
                    found[case, dtype] = median(rates["ours"])
                    tell(f"{case}, {dtype}", rates)
        if len(options.dtype) == 2:
            chosen = cpu.quick_dtype(on_gpu=False)
            other = "float32" if chosen == "bfloat16" else "bfloat16"
            ratio = found[case, chosen] / found[case, other]
            verdict = "met" if ratio >= 1 else "MISSED"
            print(f"{case}: dtype auto is {chosen} here: {ratio:.2f} of {other}, goal 1: {verdict}", flush=True)


def tell(title: str, rates: dict[str, list[float]]) -> None:
    ratios = {who: median(a / b for a, b in zip(rates["ours"], each, strict=True)) for who, each in rates.items()}
    for who, each in rates.items():
        print(f"{title}: {who:24} {median(each):9,.0f} tokens/s; ours {ratios[who]:.2f} times")
    for sort, goal in GOALS.items():
        if of_sort := [ratio for who, ratio in ratios.items() if who.startswith(sort)]:
            verdict = "met" if min(of_sort) >= goal else "MISSED"
            print(f"{title}: {min(of_sort):.2f} of the best {sort}, goal {goal:g}: {verdict}", flush=True)


if __name__ == "__main__":
    main()
