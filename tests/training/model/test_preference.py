"""The loss of preferences: value and gradient are those of the formula, written out plainly."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tokenmill.tokenizer.sequence import Kind
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.config import ModelConfig, PreferenceConfig
from tokenmill.training.model.model import build_model
from tokenmill.training.model.preference import PreferenceLoss
from tokenmill.training.pack import PADDING, Pack

VOCABULARY = Vocabulary(pad=0, eol=1, eof=2, bos=3, eos=4, sot=5, sov=6, eov=7, vision_offset=40, codebook_size=60)
LENGTHS = [9, 9, 14, 14, 6, 6]  # pairs
REFERENCE = np.array([-20.0, -22.0, -40.0, -37.0, -9.0, -10.0], np.float32)


def make(ntp_weight):
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 48}
    lm = build_model(ModelConfig(**sizes, dropout=0.0), VOCABULARY, 64, seed=1)
    return PreferenceLoss(lm, PreferenceConfig(samples="s", votes=["v"], beta=0.3, ntp_weight=ntp_weight))


def pack():
    rng = np.random.default_rng(0)
    total = sum(LENGTHS)
    positions = np.concatenate([np.arange(n) for n in LENGTHS])
    kinds = np.where(positions == 0, Kind.STRUCTURE, np.where(positions < 4, Kind.TEXT, Kind.IMAGE))
    documents = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    ids, pad = rng.integers(8, 100, total), 5
    ids, kinds, positions = (np.pad(values, (0, pad)) for values in (ids, kinds, positions))
    documents = np.pad(documents, (0, pad), constant_values=PADDING).astype(np.int32)
    return Pack(ids.astype(np.int32), kinds.astype(np.uint8), positions.astype(np.int32), documents, REFERENCE)


def plainly(model, packed):
    """The same by autograd, one document at a time."""
    log_p, per_token = [], []
    for number in range(len(LENGTHS)):
        mine = packed.documents == number
        ids = torch.from_numpy(packed.ids[mine])[None].long()
        kinds = torch.from_numpy(packed.kinds[mine])
        hidden = model.hidden(ids, torch.arange(ids.shape[1])[None], torch.zeros_like(ids, dtype=torch.int32))
        nll = functional.cross_entropy(model.lm.lm_head(hidden)[0, :-1], ids[0, 1:], reduction="none")
        nll = nll[kinds[1:] != Kind.TEXT]
        log_p.append(-nll.sum())
        per_token.append(nll.mean())
    rewards = [0.3 * (value - float(reference)) for value, reference in zip(log_p, REFERENCE, strict=True)]
    margins = torch.stack([one - other for one, other in zip(rewards[::2], rewards[1::2], strict=True)])
    return -functional.logsigmoid(margins).sum() + model.config.ntp_weight * sum(per_token[::2]), margins, log_p


@pytest.mark.parametrize("ntp_weight", [0.0, 1.5])
def test_value_and_gradient_are_those_of_the_formula(ntp_weight):
    model, other = make(ntp_weight), make(ntp_weight)
    packed = pack()
    loss, sums = model(*model.inputs(packed, torch.device("cpu")))
    (loss / 3).backward()
    expected, margins, _ = plainly(other, packed)
    (expected / 3).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6, msg=name)
    told = model.told(sums.tolist())
    assert told["margin"] == pytest.approx(margins.mean().item(), abs=1e-4)
    assert told["right"] == pytest.approx((margins > 0).float().mean().item())


def test_without_a_reference_it_tells_how_likely_each_drawing_is():
    model, packed = make(0.0), pack()
    *inputs, _ = model.inputs(packed, torch.device("cpu"))
    found = model(*inputs, None)
    torch.testing.assert_close(found, torch.stack(plainly(model, packed)[2]), rtol=1e-5, atol=1e-4)
    assert not found.requires_grad


def test_a_worker_without_pairs_adds_nothing():
    model = make(1.0)
    loss, sums = model(*model.inputs(Pack.empty(), torch.device("cpu")))
    assert float(loss) == 0 and not sums.any() and model.loss_weight(Pack.empty()) == 0
    loss.backward()
