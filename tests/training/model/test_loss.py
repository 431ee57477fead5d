"""The chunked loss equals plain cross-entropy, gradients included, and never holds all logits."""

import pytest
import torch
from torch.nn import functional

from tokenmill.tokenizer.sequence import Kind
from tokenmill.training.config import LossWeights
from tokenmill.training.model import loss as loss_module
from tokenmill.training.model.loss import linear_cross_entropy, next_tokens, sums_by_kind


def reference(hidden, weight, targets, weights):
    nll = functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
    return (nll * weights).sum(), nll


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 300])
def test_loss_and_gradients_equal_the_plain_ones(num_tokens, monkeypatch):
    monkeypatch.setattr(loss_module, "_CHUNK_NUMBERS", 1)  # chunks of 64
    torch.manual_seed(num_tokens)
    hidden = torch.randn(num_tokens, 16)
    weight = torch.randn(97, 16)
    targets = torch.randint(0, 97, (num_tokens,))
    weights = torch.rand(num_tokens) * (torch.rand(num_tokens) > 0.3)
    found, expected = [], []
    for function, results in ((linear_cross_entropy, found), (reference, expected)):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        total, nll = function(h, w, targets, weights)
        (total * 0.37).backward()
        results += [total.detach(), nll.detach(), h.grad, w.grad]
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-5)


def test_ignored_tokens_leave_no_trace():
    torch.manual_seed(0)
    hidden, weight = torch.randn(8, 4, requires_grad=True), torch.randn(10, 4, requires_grad=True)
    weights = torch.tensor([1.0] * 4 + [0.0] * 4)
    linear_cross_entropy(hidden, weight, torch.zeros(8, dtype=torch.long), weights)[0].backward()
    assert (hidden.grad[4:] == 0).all()
    assert (hidden.grad[:4] != 0).any()


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient_and_changes_none(frozen):
    torch.manual_seed(0)
    given = torch.randn(70, 4), torch.randn(10, 4)
    grads = []
    for is_frozen in (False, True):
        both = [each.clone().requires_grad_(not (is_frozen and at == frozen)) for at, each in enumerate(given)]
        linear_cross_entropy(*both, torch.zeros(70).long(), torch.ones(70))[0].backward()
        grads.append([each.grad for each in both])
    assert grads[1][frozen] is None
    torch.testing.assert_close(grads[1][1 - frozen], grads[0][1 - frozen])


def test_a_loss_hands_its_gradients_out_once():
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(10, 4, requires_grad=True)
    total, _ = linear_cross_entropy(hidden, weight, torch.zeros(3).long(), torch.ones(3))
    total.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="once"):
        total.backward()


def test_without_gradients_the_loss_is_the_same():
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(70, 4), torch.randn(10, 4, requires_grad=True), torch.zeros(70).long()
    with torch.no_grad():
        silent = linear_cross_entropy(hidden, weight, targets, torch.ones(70))[0]
    torch.testing.assert_close(silent, linear_cross_entropy(hidden, weight, targets, torch.ones(70))[0])


def test_bfloat16_products_keep_a_float32_loss():
    torch.manual_seed(0)
    hidden = torch.randn(500, 32).requires_grad_()
    weight = (torch.randn(2000, 32) * 0.1).requires_grad_()
    targets, weights = torch.randint(0, 2000, (500,)), torch.ones(500)
    exact, _ = reference(hidden, weight, targets, weights)
    exact_grad = torch.autograd.grad(exact, weight)[0]
    with torch.autocast("cpu", torch.bfloat16):
        total, nll = linear_cross_entropy(hidden, weight, targets, weights)
    total.backward()
    assert total.dtype == nll.dtype == weight.grad.dtype == torch.float32
    torch.testing.assert_close(total, exact, rtol=2e-3, atol=0)
    assert (weight.grad - exact_grad).norm() < 0.01 * exact_grad.norm()


def test_no_matrix_of_all_logits_is_ever_held():
    """At Emu3's 184,622 classes the largest tensor made is a chunk of logits or the weight's gradient."""
    num_tokens, width, vocabulary = 800, 8, 184_622
    hidden = torch.randn(num_tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            nonlocal largest
            out = function(*arguments, **(keywords or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        linear_cross_entropy(hidden, weight, torch.zeros(num_tokens).long(), torch.ones(num_tokens))[0].backward()
    assert largest <= 256 * vocabulary < num_tokens * vocabulary / 3


def test_next_tokens_stay_inside_their_document():
    ids = torch.tensor([[10, 11, 12, 20, 21, 0, 0]])
    documents = torch.tensor([[0, 0, 0, 1, 1, -1, -1]])
    kinds = torch.tensor([[3, 0, 1, 3, 2, 0, 0]], dtype=torch.uint8)
    targets, target_kinds, weights = next_tokens(ids, kinds, documents, LossWeights(1, 0.5))
    assert targets[0, [0, 1, 3]].tolist() == [11, 12, 21]
    assert weights.tolist() == [[1.0, 0.5, 0.0, 0.5, 0.0, 0.0, 0.0]]
    assert target_kinds[0, [0, 1, 3]].tolist() == [Kind.TEXT, Kind.IMAGE, Kind.VIDEO]


def test_sums_by_kind():
    sums = sums_by_kind(
        torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 1, 1, 2]), torch.tensor([1.0, 0.5, 0.5, 0.0])
    )
    assert sums.tolist() == [[1.0, 6.0, 0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 0.0, 0.0, 0.0, 0.0]]


def test_text_documents_weigh_as_much_as_captions_and_are_summed_apart():
    documents = torch.zeros(1, 6, dtype=torch.int32)
    kinds = torch.tensor([[Kind.STRUCTURE, Kind.TEXT, Kind.IMAGE, Kind.DOCUMENT, Kind.DOCUMENT, Kind.STRUCTURE]])
    _, target_kinds, weights = next_tokens(torch.arange(6)[None], kinds, documents, LossWeights(1, 0.5))
    assert weights.tolist() == [[1.0, 0.5, 1.0, 1.0, 0.5, 0.0]]
    sums = sums_by_kind(torch.arange(1.0, 7.0), target_kinds.flatten(), weights.flatten())
    assert sums[:, Kind.DOCUMENT].tolist() == [3.0 + 4.0, 2.0]
    assert sums[:, Kind.TEXT].tolist() == [1.0, 1.0]
