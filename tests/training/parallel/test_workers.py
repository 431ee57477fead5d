"""Packs and layers shared by several workers: loss and gradients are those of one worker, whatever the documents."""

import multiprocessing
import pickle
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tokenmill.storage.errors import TrainingError
from tokenmill.tokenizer.sequence import Kind
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.config import LossWeights, ModelConfig, PreferenceConfig, TrainConfig
from tokenmill.training.model.model import PackLoss, build_model, tensors
from tokenmill.training.model.preference import PreferenceLoss
from tokenmill.training.pack import Pack
from tokenmill.training.parallel.tensor import check_shares
from tokenmill.training.parallel.workers import Workers
from tokenmill.training.resources import Parallel, TrainResources

VOCABULARY = Vocabulary(pad=0, eol=1, eof=2, bos=3, eos=4, sot=5, sov=6, eov=7, vision_offset=40, codebook_size=60)
MODEL = ModelConfig(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48, dropout=0.1)
WAYS = [(1, 2, 1), (1, 1, 2), (1, 2, 2), (2, 1, 2), (1, 4, 1), (2, 2, 1)]  # data, context, tensor


def pack_of(lengths, num_tokens, seed):
    """Documents of those lengths, of random ids and kinds; the rest is padding."""
    rng = np.random.default_rng(seed)
    documents = np.repeat(np.arange(len(lengths)), lengths)
    padding = np.full(num_tokens - len(documents), -1)
    positions = np.concatenate([np.arange(length) for length in [*lengths, len(padding)]])
    return Pack(
        rng.integers(8, 100, num_tokens).astype(np.int32),
        rng.choice([Kind.TEXT, Kind.IMAGE, Kind.VIDEO], num_tokens).astype(np.uint8),
        positions.astype(np.int32),
        np.concatenate([documents, padding]).astype(np.int32),
    )


def of_all_lengths(num_tokens, seed, longest=500):
    """One token, two, and so on to `longest`, and one of a quarter of the pack, in any order."""
    rng, lengths = np.random.default_rng(seed), [1, 2, 3, 127, 128, 129, num_tokens // 4]
    while (room := num_tokens - sum(lengths) - 5) > 0:
        lengths.append(min(room, int(np.exp(rng.uniform(0, np.log(longest))))))
    return rng.permutation(lengths).tolist()


def model_of(kind):
    lm = build_model(MODEL, VOCABULARY, 256, seed=0)
    if kind == "preference":
        return PreferenceLoss(lm, PreferenceConfig(samples="a", votes=["b"])).train()
    return PackLoss(lm, LossWeights(1.0, 0.5)).train()


def inputs_of(kind, pack):
    if kind != "preference":
        return tensors(pack, torch.device("cpu"))
    reference = np.linspace(-300, -200, pack.documents.max() + 1, dtype=np.float32)
    return [*tensors(pack, torch.device("cpu")), torch.from_numpy(reference)]


def passed(kind, model, workers, packs):
    """Sums and gradients of what a worker of group `workers.group` is given of `packs`, as a training makes them."""
    forward, num_groups = (model, 1) if workers is None else (workers.forward, workers.num_groups)
    mine = packs[0 if workers is None else workers.group :: num_groups]
    sums = torch.zeros(model.num_sums + 1, dtype=torch.float64)
    for number, pack in enumerate(mine):
        torch.manual_seed(7)
        if workers is not None:
            workers.synchronized(number == len(mine) - 1).__enter__()
        loss, found = forward(*inputs_of(kind, pack))
        (loss * (1 if workers is None else workers.num_averaged)).backward()
        sums += torch.cat([found.flatten().double(), loss.detach().double()[None]])
    return sums


def reference(folder, kind, packs):
    model = model_of(kind)
    sums = passed(kind, model, None, packs)
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    model.zero_grad()
    by_token = None
    if kind == "pack":
        with torch.no_grad():
            by_token = model.eval()(*inputs_of(kind, packs[0]), by_token=True)[1]
    torch.save((sums, grads, norm, by_token), folder / f"{kind}.pt")


def work(folder, way, rank):
    """One worker: the same, compared."""
    world = int(np.prod(way))
    store = dist.FileStore(str(folder / "store-{}-{}-{}".format(*way)), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(minutes=9))
    kinds, packs = pickle.loads((folder / "packs.pickle").read_bytes())
    for kind in kinds:
        sums, grads, norm, by_token = torch.load(folder / f"{kind}.pt")
        model = model_of(kind)
        resources = TrainResources(parallel=Parallel(data=way[0], context=way[1], tensor=way[2]))
        workers = Workers(model, TrainConfig(), resources, rank, world, torch.device("cpu"))
        found = workers.sum(passed(kind, model, workers, packs))
        torch.testing.assert_close(found, sums, rtol=1e-4, atol=1e-3)
        assert workers.norm(1e9) == pytest.approx(float(norm), rel=1e-4)
        for name, parameter in model.named_parameters():
            grad = parameter.grad
            whole = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
            expected = grads[name]
            error = float((whole - expected).abs().max() / expected.abs().max())
            assert error < 1e-4, (kind, way, name, error)
        if by_token is not None:
            with torch.no_grad():
                seen = model.eval()(*inputs_of(kind, packs[0]), by_token=True)[1]
            torch.testing.assert_close(seen, by_token, rtol=1e-3, atol=1e-3)
    dist.destroy_process_group()


def share(folder, ways):
    torch.set_num_threads(1)
    kinds, packs = pickle.loads((folder / "packs.pickle").read_bytes())
    for kind in kinds:
        reference(folder, kind, packs)
    context = multiprocessing.get_context("fork")
    for way in ways:
        workers = [context.Process(target=work, args=(folder, way, rank)) for rank in range(int(np.prod(way)))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not any(worker.exitcode for worker in workers), way


def compared(folder, kinds, packs, ways):
    (folder / "packs.pickle").write_bytes(pickle.dumps((kinds, packs)))
    subprocess.run([sys.executable, __file__, str(folder), repr(ways)], check=True, timeout=1_500)


def test_loss_and_gradients_are_those_of_one_worker(tmp_path):
    packs = [pack_of(of_all_lengths(1_501, seed), 1_501, seed) for seed in range(2)]
    compared(tmp_path, ["pack"], packs, WAYS)


def test_so_are_those_of_preferences(tmp_path):
    packs = [pack_of([64, 64, 31, 31, 90, 90], 400, seed) for seed in range(2)]
    compared(tmp_path, ["preference"], packs, WAYS[:4])


@pytest.mark.slow
def test_so_are_those_of_131_072_tokens(tmp_path):
    packs = [pack_of(of_all_lengths(131_072, 0, longest=8_192), 131_072, 0)]
    compared(tmp_path, ["pack"], packs, [(1, 2, 1), (1, 2, 2)])


@pytest.mark.parametrize(
    ("parallel", "expected"),
    [
        (Parallel(context=8), "context x tensor = 8 must divide the model's num_heads 4; lower it"),
        (Parallel(tensor=4), "tensor = 4 must divide the model's num_kv_heads 2; lower it"),
        (Parallel(context=3, tensor=2), "context x tensor = 6 must divide the model's num_heads 4"),
    ],
)
def test_what_a_model_cannot_be_shared_by_is_said(parallel, expected):
    with pytest.raises(TrainingError, match=expected):
        check_shares(build_model(MODEL, VOCABULARY, 256, seed=0), parallel)


if __name__ == "__main__":
    share(Path(sys.argv[1]), eval(sys.argv[2]))
