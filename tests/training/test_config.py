"""Impossible values are errors when the config is read; resources never reach a fingerprint."""

import pytest

from tokenmill.storage.identity import fingerprint_of
from tokenmill.training.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig, TrainResources


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
        (DataConfig, {"text_share": 1.0}, "text_share"),
        (OptimizerConfig, {}, "steps or epochs"),
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


def test_defaults_are_possible_and_have_a_fingerprint():
    assert fingerprint_of(TrainConfig()) != fingerprint_of(TrainConfig(seed=1))


def test_a_later_field_leaves_the_fingerprint_as_it_was():
    """Models trained before `text_share` was there are still found and resumed."""
    assert fingerprint_of(DataConfig()) == fingerprint_of({
        name: value for name, value in DataConfig().model_dump().items() if name != "text_share"
    })  # fmt: skip
    shares = [fingerprint_of(DataConfig(text_share=share)) for share in (None, 0.0, 0.2)]
    assert len(set(shares)) == 3


def test_every_field_explains_itself():
    for config in (ModelConfig, DataConfig, OptimizerConfig, TrainResources):
        assert len(config.model_fields) <= 12
        assert all(field.description for field in config.model_fields.values())
