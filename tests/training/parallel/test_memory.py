"""What a step is said to need is what it takes: weights and states to the byte, activations within a tenth."""

import pytest
import torch

from tokenmill.storage.errors import TrainingError
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.config import DataConfig, LossWeights, ModelConfig, OptimizerConfig, TrainConfig
from tokenmill.training.model.model import PackLoss, build_model
from tokenmill.training.model.optimizer import make_optimizers
from tokenmill.training.parallel.memory import check_against, needed
from tokenmill.training.resources import TrainResources

VOCABULARY = Vocabulary(pad=0, eol=1, eof=2, bos=3, eos=4, sot=5, sov=6, eov=7, vision_offset=40, codebook_size=60)
TOKENS = 1_024


def train_config(width=64, inner=192, num_heads=4, num_kv_heads=4, num_layers=2, dtype="float32", dropout=0.1, **more):
    model = ModelConfig(
        hidden_size=width, intermediate_size=inner, num_heads=num_heads, num_kv_heads=num_kv_heads,
        num_layers=num_layers, dropout=dropout,
    )  # fmt: skip
    data = DataConfig(context_tokens=TOKENS, pack_tokens=TOKENS)
    return TrainConfig(model=model, data=data, dtype=dtype, optimizer=OptimizerConfig(steps=1, **more))


def kept_bytes(model, config, recompute):
    """What autograd keeps for the backward pass of the layers, besides weights."""
    if recompute:
        model.lm.activation_checkpointing_enable({"use_reentrant": False})
    seen, weights = {}, {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor):
        of_tensor = tensor.untyped_storage()
        if of_tensor.data_ptr() not in weights:
            seen[of_tensor.data_ptr()] = (of_tensor.nbytes(), tensor)
        return tensor

    ids = torch.randint(8, 100, (1, TOKENS))
    positions, documents = torch.arange(TOKENS)[None], torch.zeros(1, TOKENS, dtype=torch.int32)
    in_bf16 = config.dtype == "bfloat16"
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=in_bf16, cache_enabled=False),
    ):
        model.hidden(ids, positions, documents)
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [{}, {"width": 128, "inner": 384, "num_kv_heads": 1}, {"num_layers": 5}], ids=str)
def test_activations(sizes, dtype):
    said, kept = measured(train_config(**sizes, dtype=dtype), recompute=False)
    assert said == pytest.approx(kept, rel=0.12)


def test_of_what_is_computed_again_the_layers_inputs_are_kept():
    few, many = (measured(train_config(num_layers=number), recompute=True) for number in (2, 6))
    assert many[0] - few[0] == pytest.approx(many[1] - few[1], rel=0.05)
    assert many[0] < 0.5 * measured(train_config(num_layers=6), recompute=False)[0]


def measured(config, recompute):
    model = PackLoss(build_model(config.model, VOCABULARY, TOKENS, 0), LossWeights(1.0, 0.5)).train()
    memory = needed(model.lm.config, config, TrainResources(recompute=recompute), 1)
    return memory.activations, kept_bytes(model, config, recompute)


@pytest.mark.parametrize("muon_lr", [None, 0.02])
def test_weights_and_states(muon_lr):
    config = train_config(muon_lr=muon_lr, num_kv_heads=2)
    model = PackLoss(build_model(config.model, VOCABULARY, TOKENS, 0), LossWeights(1.0, 0.5))
    optimizers = make_optimizers(model, config.optimizer, torch.float32)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    memory = needed(model.lm.config, config, TrainResources(), 1)
    states = [kept for optimizer in optimizers for state in optimizer.state.values() for kept in state.values()]
    assert memory.weights == memory.gradients == sum(parameter.nbytes for parameter in model.parameters())
    assert memory.optimizer == sum(kept.nbytes for kept in states if kept.dim())


def test_spread_weights_take_their_share():
    config = train_config(num_layers=32)
    lm = build_model(config.model, VOCABULARY, TOKENS, 0).config
    alone = needed(lm, config, TrainResources(), 1)
    eight = needed(lm, config, TrainResources(num_workers=8, spread_model=True), 8)
    assert eight.optimizer == pytest.approx(alone.optimizer / 8)
    assert alone.weights / 8 < eight.weights < alone.weights / 4
    half = needed(lm, config, TrainResources(num_workers=2, parallel={"context": 2}), 2)
    assert half.activations == pytest.approx(alone.activations / 2)


def test_a_gpu_that_is_too_small_is_said_with_what_helps():
    config = train_config()
    memory = needed(build_model(config.model, VOCABULARY, TOKENS, 0).config, config, TrainResources(), 1)
    check_against(memory, memory.total, "a GPU", TrainResources())
    expected = (
        r"a step needs about 0\.\d GB of each worker: weights .*; a GPU has 0\.0 GB\. Give resources\.recompute: true; "
        r"resources\.spread_model: true; parallel\.context: 2"
    )
    with pytest.raises(TrainingError, match=expected):
        check_against(memory, memory.total / 2, "a GPU", TrainResources())
