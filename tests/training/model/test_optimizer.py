"""Muon: the updates of torch's, for the matrices of the layers alone; singular values near one."""

import pytest
import torch
from torch import nn

from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.config import LossWeights, ModelConfig, OptimizerConfig
from tokenmill.training.model.model import PackLoss, build_model
from tokenmill.training.model.optimizer import Muon, make_optimizers, orthogonalized, schedule, set_learning_rate

WEIGHTS = LossWeights(text=1.0, vision=0.5)
MODEL = ModelConfig(hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=48)
VOCABULARY = Vocabulary(
    pad=0, eol=1, eof=2, bos=3, eos=4, sot=5, sov=6, eov=7, vision_offset=30, codebook_size=20
)  # fmt: skip


@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48)])
def test_updates_are_those_of_torch(shape):
    """Torch's are rounded to bfloat16: each update may differ by that, and points the same way."""
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    one = Muon([ours], 0.1, 0.01, torch.float32)
    other = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.01)
    for _ in range(3):
        before = ours.detach().clone(), theirs.detach().clone()
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        one.step()
        other.step()
        moves = [(weight.detach() - old).flatten() for weight, old in zip((ours, theirs), before, strict=True)]
        assert torch.nn.functional.cosine_similarity(moves[0], moves[1], dim=0) > 0.999
        assert moves[0].norm().item() == pytest.approx(moves[1].norm().item(), rel=0.02)


def test_matrices_of_one_shape_are_orthogonalized_at_once_and_stay_apart():
    torch.manual_seed(1)
    x_BMN = torch.randn(5, 40, 12)
    together = orthogonalized(x_BMN)
    singular = torch.linalg.svdvals(together)
    assert singular.min() > 0.6 and singular.max() < 1.3
    for i in range(5):
        torch.testing.assert_close(together[i], orthogonalized(x_BMN[i : i + 1])[0], rtol=1e-4, atol=1e-5)
    assert not orthogonalized(torch.zeros(1, 4, 4)).any()


def test_only_matrices_of_the_layers_learn_by_muon():
    model = PackLoss(build_model(MODEL, VOCABULARY, 64, 0), WEIGHTS)
    config = OptimizerConfig(steps=10, lr=0.003, muon_lr=0.02, warmup_steps=0)
    adam, muon = make_optimizers(model, config, torch.float32)
    names = {id(weight): name for name, weight in model.named_parameters()}
    by_muon = {names[id(weight)] for group in muon.param_groups for weight in group["params"]}
    by_adam = {names[id(weight)] for group in adam.param_groups for weight in group["params"]}
    assert by_muon | by_adam == set(names.values()) and not by_muon & by_adam
    assert all("layers" in name and "norm" not in name for name in by_muon)
    assert {"lm.lm_head.weight", "lm.model.embed_tokens.weight"} <= by_adam
    set_learning_rate([adam, muon], config, schedule(config, 5, 10))
    assert adam.param_groups[0]["lr"] == pytest.approx(0.0015) and muon.param_groups[0]["lr"] == pytest.approx(0.01)
    assert len(make_optimizers(model, OptimizerConfig(steps=10), torch.float32)) == 1
