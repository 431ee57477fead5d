"""FLOPs of a pack are those that torch counts, and a share of the peak is said only where the peak is known."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from tokenmill.pipeline.run.train import said
from tokenmill.storage.run_log import read_log
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.config import LossWeights, ModelConfig
from tokenmill.training.model import products
from tokenmill.training.model.flops import Flops, peak_of, peak_per_s
from tokenmill.training.model.model import PackLoss, build_model
from tokenmill.training.pack import PADDING, Pack
from tokenmill.training.parallel import workers
from tokenmill.training.resources import TrainResources
from tokenmill.training.run import worker

WEIGHTS = LossWeights(text=1.0, vision=0.5)
VOCABULARY = Vocabulary(pad=0, eol=1, eof=2, bos=3, eos=4, sot=5, sov=6, eov=7, vision_offset=40, codebook_size=60)


def pack(*lengths: int, padding: int = 0) -> Pack:
    """Documents of these lengths."""
    documents = np.concatenate([np.repeat(np.arange(len(lengths)), lengths), np.full(padding, PADDING)])
    positions = np.concatenate([*(np.arange(length) for length in lengths), np.zeros(padding)])
    ids = np.random.default_rng(0).integers(8, 100, len(documents))
    arrays = (each.astype(np.int32) for each in (ids, positions, documents))
    ids, positions, documents = arrays
    return Pack(ids, np.zeros(len(ids), np.uint8), positions, documents)


@pytest.mark.parametrize(("length", "num_layers", "num_kv_heads"), [(40, 2, 2), (60, 3, 4)])
def test_they_are_what_torch_counts(length, num_layers, num_kv_heads, monkeypatch):
    """But for the upper half of the scores of one document, which the path of CPUs computes and no token sees."""
    monkeypatch.setattr(products, "_has_idle_units", lambda: False)  # it counts torch's products, not oneDNN's
    sizes = {"hidden_size": 32, "num_layers": num_layers, "num_heads": 4, "num_kv_heads": num_kv_heads}
    lm = build_model(ModelConfig(**sizes, intermediate_size=48, dropout=0.0), VOCABULARY, 64, seed=1)
    one, flops = pack(length), Flops(lm)
    with FlopCounterMode(display=False) as counted:
        arrays = (one.ids, one.kinds, one.positions, one.documents)
        loss, _ = PackLoss(lm, WEIGHTS)(*(torch.from_numpy(array)[None] for array in arrays))
        loss.backward()
    unseen = length * length - one.num_pairs
    assert counted.get_total_flops() == flops.of(length, one.num_pairs + unseen)
    assert flops.of(2 * length, 2 * one.num_pairs) == 2 * flops.of(length, one.num_pairs)


def test_documents_see_themselves_alone_and_padding_nothing():
    assert pack(3).num_pairs == 6
    assert pack(3, 1, 4, padding=9).num_pairs == 6 + 1 + 10
    assert Pack.empty().num_pairs == 0


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
    ],
)
def test_peaks_are_found_by_the_names_that_drivers_give(name, peak):
    assert peak_of(name) == peak


def test_no_peak_is_made_up():
    assert math.isnan(peak_of("Some Other Device"))
    assert math.isnan(peak_per_s(torch.device("cpu"), "bfloat16"))


def test_mfu_is_in_log_and_line_where_the_peak_is_known(make_job, monkeypatch):
    unknown, known = make_job("unknown"), make_job("known")
    worker.train_worker(unknown)
    assert not any("mfu" in record for record in read_log(unknown.run_uri))
    monkeypatch.setattr(workers, "peak_per_s", lambda device, dtype: 1e12)
    worker.train_worker(known, TrainResources(log_every_steps=2))
    (first, *_) = log = read_log(known.run_uri)
    assert all(0 < record["mfu"] < 1 for record in log)
    lap_s = first["tokens"] / first["tokens_per_s"]
    weights = sum(size for name, size in sizes(known).items() if "embed_tokens" not in name)
    of_matrices = 6 * weights * first["tokens"] / lap_s / 1e12
    assert of_matrices < first["mfu"] < 1.5 * of_matrices, "attention to short documents is little"
    shown = said({"loss": 2.5, "structure": 0.1}, {"tokens_per_s": 1234.0, "mfu": 0.4123})
    assert shown == "loss 2.500  1,234 tokens/s  MFU 41.2%"
    assert said({"loss": 2.5}, {"tokens_per_s": 10.0}) == "loss 2.500  10 tokens/s"


def sizes(job) -> dict[str, int]:
    """Numbers of weights of the matrices that a job trained."""
    found = load_file(Path(job.run_uri) / "model" / "model.safetensors")
    return {name: tensor.numel() for name, tensor in found.items() if tensor.dim() == 2}
