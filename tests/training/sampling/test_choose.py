"""Scores to ids: the distribution that was asked for, and streams that begin alike."""

import pytest
import torch

from tokenmill.training.sampling import Choice, choose
from tokenmill.training.sampling.choose import _best, noise

SHARES = torch.tensor([0.1, 0.45, 0.3, 0.15])


def drawn(choice: Choice, count: int = 20_000, shares: torch.Tensor = SHARES) -> list[float]:
    torch.manual_seed(0)
    scores = torch.log(shares).expand(count, -1)
    return (torch.bincount(choice.pick(scores, torch.rand(count)), minlength=len(shares)) / count).tolist()


@pytest.mark.parametrize("most_sorted", [256, 1])
@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(None), [0.1, 0.45, 0.3, 0.15]),
        (Choice(3), [0, 0.5, 1 / 3, 1 / 6]),
        (Choice(100), [0.1, 0.45, 0.3, 0.15]),
        (Choice(None, top_p=0.5), [0, 0.6, 0.4, 0]),
        (Choice(None, top_p=0.44), [0, 1, 0, 0]),
        (Choice(None, top_p=0.46), [0, 0.6, 0.4, 0]),
        (Choice(3, top_p=0.75), [0, 0.6, 0.4, 0]),  # of what top-k leaves
        (Choice(None, temperature=0.5), [0.01 / 0.325, 0.2025 / 0.325, 0.09 / 0.325, 0.0225 / 0.325]),
    ],
)
def test_the_distribution_that_was_asked_for(choice, expected, most_sorted, monkeypatch):
    monkeypatch.setattr(choose, "_SORTED", most_sorted)
    assert drawn(choice) == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("most_sorted", [256, 1])
def test_the_ends_of_the_noise_choose_what_may_be_chosen(most_sorted, monkeypatch):
    monkeypatch.setattr(choose, "_SORTED", most_sorted)
    scores = torch.tensor([[float("-inf"), 2.0, 1.0, 0.0, float("-inf")]]).expand(2, -1)
    ends = torch.tensor([0.0, 1 - 2**-24])
    assert set(Choice(3).pick(scores, ends).tolist()) == {1, 3}
    assert set(Choice(None).pick(scores, ends).tolist()) == {1, 3}
    assert set(Choice(None, top_p=0.7).pick(scores, ends).tolist()) == {1, 2}


@pytest.mark.parametrize(("num_scores", "top_k"), [(4608, 20), (4608, 72), (4608, 73), (300, 20), (64, 1), (16, 16)])
def test_the_best_in_order(num_scores, top_k):
    torch.manual_seed(0)
    scores = torch.randn(9, num_scores)
    best, places = _best(scores, top_k)
    expected = torch.topk(scores, top_k, dim=1)
    assert torch.equal(best, expected.values) and torch.equal(places, expected.indices)


def test_a_longer_stream_begins_with_a_shorter_one():
    for short, long in ((1, 16), (24, 96), (64, 1920)):
        assert torch.equal(noise(3, "a", short), noise(3, "a", long)[:short])
    assert not torch.equal(noise(3, "a", 8), noise(3, "b", 8)) and not torch.equal(noise(3, "a", 8), noise(4, "a", 8))


@pytest.mark.parametrize(
    "wrong", [{"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"temperature": -1.0}, {"guidance": -0.1}], ids=str
)
def test_what_leaves_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="give 1 or more|must not be negative"):
        Choice(**wrong)
