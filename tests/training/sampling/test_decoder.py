"""Token by token, the packed layers give what transformers' model gives for the whole sequence."""

import numpy as np
import pytest
import torch

from tokenmill.training.sampling import decoder as decoding
from tokenmill.training.sampling.decoder import Decoder, Product, Stream


def expected(lm, rows: list[list[int]]) -> torch.Tensor:
    """Last logits of each sequence, alone."""
    return torch.stack([lm(torch.tensor([row])).logits[0, -1] for row in rows])


def assert_equal_on_the_way(lm, pad: int, **how: bool) -> Decoder:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, lm.config.vocab_size, length).tolist() for length in (3, 9, 1, 14)]
    with torch.inference_mode():
        before = expected(lm, rows)
    decoder = Decoder(lm, **how)
    with torch.inference_mode():
        head = Product(lm.lm_head.weight)
        stream = Stream(decoder, [np.array(row) for row in rows], 40, pad)
        torch.testing.assert_close(head(stream.prefill()), before, atol=1e-4, rtol=0)
        for num_new in (1, 2, 1, 3, 1, 1):
            new = torch.from_numpy(rng.integers(0, lm.config.vocab_size, (len(rows), num_new)))
            rows = [row + ids for row, ids in zip(rows, new.tolist(), strict=True)]
            torch.testing.assert_close(head(stream.feed(new)), expected(lm, rows), atol=1e-4, rtol=0)
    return decoder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"attention_bias": True, "mlp_bias": True},
        {"hidden_size": 64, "head_dim": 8},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e3}},
        {"hidden_act": "gelu"},
    ],
    ids=lambda changes: ",".join(changes) or "grouped",
)
@pytest.mark.parametrize("is_plain", [True, False], ids=["as on a CPU", "as on a GPU"])
def test_logits_are_those_of_transformers(make_lm, changes, is_plain):
    lm, layout = make_lm(**changes)
    assert_equal_on_the_way(lm, layout.vocabulary.pad, is_plain=is_plain)


def test_long_prefixes_go_through_in_parts(make_lm, monkeypatch):
    lm, layout = make_lm()
    monkeypatch.setattr(decoding, "_MASK_NUMBERS", 5 * 4 * 2 * 14)
    assert_equal_on_the_way(lm, layout.vocabulary.pad)


def test_products_in_another_order_are_equal(monkeypatch):
    """As for large products on a CPU; small ones go to the same library as ever."""
    torch.manual_seed(0)
    weight, bias, x, residual = torch.randn(40, 24), torch.randn(40), torch.randn(6, 24), torch.randn(6, 40)
    monkeypatch.setattr(decoding, "_WORTH", 1)
    with torch.inference_mode():
        for product in (Product(weight), Product(weight, bias)):
            out = torch.nn.functional.linear(x, weight, product.bias)
            torch.testing.assert_close(product(x), out, atol=1e-5, rtol=0)
            torch.testing.assert_close(product.onto(residual, x), residual + out, atol=1e-5, rtol=0)


def test_the_model_is_as_usable_as_before(make_lm):
    """Packed weights are held once: its own are views of them, and can still be computed and trained with."""
    lm, layout = make_lm()
    ids = torch.arange(5)[None]
    before = lm(ids).logits
    decoder = Decoder(lm)
    assert lm.model.layers[0].self_attn.k_proj.weight.data_ptr() > decoder.layers[0]._qkv.weight.data_ptr()
    after = lm(ids).logits
    torch.testing.assert_close(after, before)
    after.sum().backward()
    assert lm.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_compiled_steps_are_equal(make_lm):
    """Graphs need a GPU; that each shape of a step compiles whole, and to the same numbers, a CPU can tell. A second
    stream of the same shape compiles nothing."""
    lm, layout = make_lm()
    decoder = assert_equal_on_the_way(lm, layout.vocabulary.pad, is_compiled=True)
    known = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert known > 0
    with torch.inference_mode():
        stream = Stream(decoder, [np.array([5, 6, 7])] * 4, 60, layout.vocabulary.pad)
        stream.prefill()
        head, new = Product(lm.lm_head.weight), torch.arange(4)[:, None]
        found = head(stream.feed(new))
        rows = [[5, 6, 7, n] for n in range(4)]
        torch.testing.assert_close(found, expected(lm, rows), atol=1e-4, rtol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == known
