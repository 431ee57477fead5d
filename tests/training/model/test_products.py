"""oneDNN's products equal torch's, gradients included; where they are not the quicker ones, torch's are taken."""

import pytest
import torch
from torch import nn

from tokenmill.storage import cpu
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.config import LossWeights, ModelConfig
from tokenmill.training.model import products
from tokenmill.training.model.model import PackLoss, build_model

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is without oneDNN here")


@pytest.fixture(params=[True, False], ids=["oneDNN", "torch"])
def has_idle_units(request, monkeypatch):
    monkeypatch.setattr(products, "_has_idle_units", lambda: request.param)
    return request.param


@pytest.mark.parametrize("shape", [(7, 5), (2, 7, 5), (1, 5)])
def test_layers_and_gradients_equal_those_of_torch(shape, has_idle_units):
    torch.manual_seed(0)
    plain, quick = nn.Linear(5, 3, bias=False), nn.Linear(5, 3, bias=False)
    quick.load_state_dict(plain.state_dict())
    products.quicken(quick)
    assert (type(quick) is products.Linear) == has_idle_units
    x = torch.randn(shape).requires_grad_()
    outs = []
    for layer in (plain, quick):
        x.grad = None
        y = layer(x)
        y.square().sum().backward()
        outs.append((y.detach(), x.grad, layer.weight.grad))
    for got, wanted in zip(outs[1], outs[0], strict=True):
        torch.testing.assert_close(got, wanted)
        assert got.stride() == wanted.stride()


def test_products_of_transposed_and_of_cut_matrices(has_idle_units):
    torch.manual_seed(0)
    a, b = torch.randn(9, 40), torch.randn(9, 64)
    cut = b[:, 8:24]
    torch.testing.assert_close(products.product(a.T, cut), a.T @ cut)
    torch.testing.assert_close(products.product(cut.T, a), cut.T @ a)
    half = a.bfloat16()
    assert products.product(half.T, cut.bfloat16()).dtype == torch.bfloat16


def test_under_autocast_layers_are_torch_s(monkeypatch):
    monkeypatch.setattr(products, "_has_idle_units", lambda: True)
    layer = nn.Linear(4, 4, bias=False)
    products.quicken(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(2, 4)).dtype == torch.bfloat16


def test_a_model_keeps_its_weights_names(monkeypatch):
    monkeypatch.setattr(products, "_has_idle_units", lambda: True)
    sizes = ModelConfig(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=48)
    ids = Vocabulary(pad=0, eol=1, eof=2, bos=3, eos=4, sot=5, sov=6, eov=7, vision_offset=30, codebook_size=20)
    lm = build_model(sizes, ids, 16, 0)
    names = list(lm.state_dict())
    PackLoss(lm, LossWeights(1.0, 0.5))
    assert list(lm.state_dict()) == names
    assert {type(m) for m in lm.modules() if isinstance(m, nn.Linear)} == {products.Linear}


@pytest.mark.parametrize(
    ("vendor", "flags", "limit", "expected"),
    [
        ("AuthenticAMD", "avx2 avx512f", "", True),
        ("AuthenticAMD", "avx2 avx512f", "AVX512_CORE", True),
        ("AuthenticAMD", "avx2 avx512f", "AVX2", False),
        ("AuthenticAMD", "avx2", "", False),
        ("GenuineIntel", "avx2 avx512f", "", False),
    ],
)
def test_which_processors_mkl_leaves_idle(vendor, flags, limit, expected, monkeypatch):
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: {"vendor_id": vendor, "flags": flags})
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert cpu.leaves_mkl_idle() == expected
