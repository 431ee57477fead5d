"""Impossible values are errors when the config is read; resources never reach a fingerprint."""

import pytest

from tokenmill.storage.identity import Config, Resources, fingerprint_of
from tokenmill.training.config import DataConfig, GuardConfig, ModelConfig, OptimizerConfig, TrainConfig
from tokenmill.training.resources import Monitor, Parallel, TrainResources


@pytest.mark.parametrize(
    ("config", "values", "words"),
    [
        (ModelConfig, {"hidden_size": 100, "num_heads": 3}, "num_heads"),
        (ModelConfig, {"hidden_size": 12, "num_heads": 4}, "even"),
        (ModelConfig, {"num_heads": 4, "num_kv_heads": 3}, "divide"),
        (ModelConfig, {"dropout": 1.0}, "dropout"),
        (DataConfig, {"context_tokens": 1000, "pack_tokens": 999}, "pack_tokens"),
        (DataConfig, {"text_vocab_size": 100}, "text_vocab_size"),
        (DataConfig, {"understanding_share": 1.5}, "understanding_share"),
        (DataConfig, {"mixture": {"text": 0.5, "media": 0.4}}, "shares make 0.9"),
        (DataConfig, {"mixture": {"text": 0.2, "media": 0.4, "video": 0.4}}, "media are images and video"),
        (DataConfig, {"mixture": {"text": 0.0, "media": 1.0}}, "mixture.text"),
        (DataConfig, {"mixture": {"audio": 1.0}}, "mixture.audio"),
        (OptimizerConfig, {"text_weight": 0, "vision_weight": 0}, "nothing is learned"),
        (OptimizerConfig, {"steps": 3, "epochs": 3}, "not both"),
        (OptimizerConfig, {"steps": 0}, "steps"),
        (TrainConfig, {"dtype": "float16"}, "dtype"),
        (TrainConfig, {"learning_rate": 1.0}, "learning_rate"),
        (TrainResources, {"num_workers": 0}, "num_workers"),
    ],
)
def test_impossible_values(config, values, words):
    with pytest.raises(ValueError, match=words):
        config(**values)


@pytest.mark.parametrize(
    ("num_workers", "min_workers", "batch_packs", "expected"),
    [
        (3, None, 2, [3]),  # workers may have unequal shares, where their number is fixed
        (4, 1, 4, [1, 2, 4]),
        (8, 2, 24, [2, 3, 4, 6, 8]),
        (2, 2, 2, [2]),
        (4, 3, 4, "resources.min_workers 3 must divide data.batch_packs 4, .*: 1, 2, 4 do"),
        (3, 1, 4, "resources.num_workers 3 must divide data.batch_packs 4"),
        (2, 4, 4, "min_workers 4 is more than resources.num_workers 2"),
    ],
)
def test_numbers_of_workers_that_suit_the_batch(num_workers, min_workers, batch_packs, expected):
    resources = TrainResources(num_workers=num_workers, min_workers=min_workers)
    if isinstance(expected, list):
        assert resources.sizes(batch_packs) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            resources.sizes(batch_packs)


def test_defaults_are_possible_and_have_a_fingerprint():
    assert fingerprint_of(TrainConfig()) != fingerprint_of(TrainConfig(seed=1))


def test_a_later_field_leaves_the_fingerprint_as_it_was():
    """Models trained before these were there are still found and resumed."""
    for config, later in (
        (DataConfig(), {"mixture", "select", "dialogues", "held_out"}),
        (OptimizerConfig(), {"schedule", "text_weight"}),
    ):
        before = {name: value for name, value in config.model_dump().items() if name not in later | {"muon_lr"}}
        assert fingerprint_of(config) == fingerprint_of(before)
    assert fingerprint_of(TrainConfig(), "x") != fingerprint_of(TrainConfig(guard=GuardConfig(spike="skip")), "x")
    assert fingerprint_of(TrainConfig()) == fingerprint_of(TrainConfig(guard=GuardConfig()))
    shares = [fingerprint_of(DataConfig(mixture=mixture)) for mixture in (None, {"media": 1.0}, {"image": 1.0})]
    assert len(set(shares)) == 3
    assert len({fingerprint_of(OptimizerConfig(schedule=name)) for name in ("cosine", "linear", "constant")}) == 3


def test_neither_steps_nor_epochs_is_one_epoch():
    assert OptimizerConfig().epochs == 1 and OptimizerConfig(steps=3).epochs is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"num_workers": 4, "parallel": {"context": 2}}, [4]),
        ({"num_workers": 8, "parallel": {"context": 2}, "min_workers": 2}, [2, 4, 8]),
        ({"num_workers": 8, "parallel": {"data": 2, "context": 2, "tensor": 2}}, [8]),
        ({"num_workers": 6, "parallel": {"context": 2, "tensor": 2}}, "6 must be a multiple of .*context 2 x .* = 4"),
        ({"num_workers": 4, "parallel": {"data": 2, "context": 4}}, "4 is not parallel.data 2 x context 4 x tensor 1"),
        ({"num_workers": 6, "parallel": {"context": 2}, "min_workers": 2}, r"6 in groups of 2 .*: 2, 4, 8 do"),
        ({"num_workers": 4, "parallel": {"data": 4}, "min_workers": 2}, "leave one out"),
    ],
)
def test_groups_of_workers_share_packs(values, expected):
    resources = TrainResources(**values)
    if isinstance(expected, list):
        assert resources.sizes(4) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            resources.sizes(4)


def is_block(annotation):
    return isinstance(annotation, type) and issubclass(annotation, (Config, Resources))


def test_every_field_explains_itself():
    for config in (ModelConfig, DataConfig, OptimizerConfig, TrainResources, Parallel, GuardConfig, Monitor):
        keys = [field for field in config.model_fields.values() if not is_block(field.annotation)]
        assert len(keys) <= 12
        assert all(field.description for field in keys)
