"""Training in tokens/s on one CPU thread, beside a plain PyTorch loop over transformers' own class, in one run.

    plain    documents padded to the longest of their batch, as Emu3's scripts train: `model(ids, labels=...)`, AdamW
    packed   training/run/worker.py: documents packed, each blind to the others, the loss in chunks, AdamW
    Muon     the same with Muon for the matrices of the layers

The model is the demo's, on documents of its shape: a caption of eight words and 8x8 codes. Tokens are those that are no
padding. `float32` and `bfloat16` each; `dtype: auto` takes the one that this CPU has units for: it must be the quicker.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import torch
from transformers import Emu3ForCausalLM

from tokenmill.pipeline.config import load
from tokenmill.pipeline.demo.show import CONFIG
from tokenmill.storage import cpu
from tokenmill.storage.run_log import read_log
from tokenmill.tokenizer.shards import TOKENS, write_parquet
from tokenmill.training.data.loader import Loader
from tokenmill.training.job import TrainJob
from tokenmill.training.model.model import build_model
from tokenmill.training.resources import TrainResources
from tokenmill.training.run.prepare import load_prepared, prepare
from tokenmill.training.run.worker import train_worker

CODEBOOK = 4608  # of the built-in tokenizer
WORDS = ("red", "green", "blue", "circle", "square", "left", "right", "above", "of", "a", "the", "two")


def shard(path: Path, count: int) -> str:
    """`count` images of 8x8 random codes with captions of eight words."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "media_id": f"{number:032x}",
            "kind": "image",
            "codes": rng.integers(0, CODEBOOK, 64).tolist(),
            "grid_t": 1,
            "grid_h": 8,
            "grid_w": 8,
            "frames_trimmed": 0,
            "caption": " ".join(rng.choice(WORDS, 8)),
            "fingerprint": "f" * 16,
            "run_id": "benchmark",
        }
        for number in range(count)
    ]
    write_parquet(pa.Table.from_pylist(rows, schema=TOKENS), str(path), 512)
    return str(path)


def ours(job: TrainJob) -> float:
    """Tokens per second of the steps after the first three."""
    train_worker(job, TrainResources(threads=1, log_every_steps=1))
    return median(record["tokens_per_s"] for record in read_log(job.run_uri)[3:])


def plain(job: TrainJob) -> float:
    """The same documents, as many a step, padded instead of packed."""
    prepare(job)
    ready = load_prepared(job)
    vocabulary, config = ready.layout.vocabulary, job.config
    sizes = config.model.model_copy(update={"init_from": None})
    model = Emu3ForCausalLM(build_model(sizes, vocabulary, config.data.context_tokens, 0).config)
    model.set_attn_implementation("sdpa")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = Loader(ready.plan, ready.index, job.shard_uris, ready.layout, config.data.pack_tokens, 64 << 20)
    rates = []
    for _, packs in loader.steps(0, 0, 1):
        documents = [pack.ids[pack.documents == n] for pack in packs for n in range(pack.documents.max() + 1)]
        started = time.perf_counter()
        ids = torch.full((len(documents), max(map(len, documents))), vocabulary.pad)
        labels = torch.full_like(ids, -100)
        for row, document in enumerate(documents):
            ids[row, : len(document)] = labels[row, : len(document)] = torch.from_numpy(document)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.dtype == "bfloat16"):
            loss = model(input_ids=ids, attention_mask=(labels >= 0).long(), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        rates.append(sum(map(len, documents)) / (time.perf_counter() - started))
    return median(rates[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15, help="of each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(cpu.describe())
    given = load(CONFIG).train.what
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="tokenmill-bench-") as name:
        uri = shard(Path(name) / "part-0.parquet", 1200)

        def job(title: str, dtype: str, muon_lr: float | None) -> TrainJob:
            optimizer = given.optimizer.model_copy(update={"steps": options.steps, "muon_lr": muon_lr})
            config = given.model_copy(update={"dtype": dtype, "optimizer": optimizer})
            return TrainJob(config, [uri], CODEBOOK, f"{name}/{title}-{dtype}")

        for dtype in ("float32", "bfloat16"):
            found[dtype] = {
                "plain": plain(job("plain", dtype, None)),
                "packed": ours(job("packed", dtype, None)),
                "Muon": ours(job("muon", dtype, given.optimizer.muon_lr)),
            }
            base = found[dtype]["plain"]
            shown = ", ".join(f"{title} {rate:,.0f} ({rate / base:.2f})" for title, rate in found[dtype].items())
            print(f"{dtype:8} tokens/s (times the plain loop): {shown}", flush=True)
    chosen = cpu.quick_dtype(on_gpu=False)
    other = "float32" if chosen == "bfloat16" else "bfloat16"
    ratio = found[chosen]["packed"] / found[other]["packed"]
    print(f"dtype auto is {chosen} here: {ratio:.2f} of {other} ({'met' if ratio >= 1 else 'MISSED'}: at least 1)")


if __name__ == "__main__":
    main()
