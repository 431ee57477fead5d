"""A small model whose random weights depend on what was said."""

from collections.abc import Callable

import pytest
import torch
from transformers import Emu3ForCausalLM

from tokenmill.tokenizer.sequence import SequenceLayout
from tokenmill.tokenizer.text import train_text_tokenizer
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.config import ModelConfig
from tokenmill.training.model.model import build_model

PROMPTS = ["a", "a red circle left of a blue square", "12 stars"]


@pytest.fixture(scope="session")
def make_lm() -> Callable[..., tuple[Emu3ForCausalLM, SequenceLayout]]:
    """(**fields of its config) -> a model with shared keys, and its layout."""
    tokenizer = train_text_tokenizer(PROMPTS, 300)
    layout = SequenceLayout(tokenizer, Vocabulary.of(tokenizer, 50))

    def make(**changes) -> tuple[Emu3ForCausalLM, SequenceLayout]:
        sizes = ModelConfig(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48)
        config = build_model(sizes, layout.vocabulary, 128, seed=0).config
        for name, value in changes.items():
            setattr(config, name, value)
        torch.manual_seed(0)
        lm = Emu3ForCausalLM(config)
        lm.set_attn_implementation("sdpa")
        with torch.no_grad():  # random weights hardly depend on what was said; make them
            for parameter in lm.parameters():
                parameter.mul_(4.0) if parameter.ndim == 2 else parameter.add_(0.3 * torch.randn_like(parameter))
        return lm.eval(), layout

    return make


@pytest.fixture(scope="session")
def parts(make_lm) -> tuple[Emu3ForCausalLM, SequenceLayout]:
    return make_lm()
