"""Semantic duplicates against all pairs, in the order of ranks; clusters; who stays."""

import numpy as np
import pytest

from tokenmill.stages.select import semantic


def bunches(num_bunches: int, size: int, spread: float, dims: int = 24, seed: int = 0) -> np.ndarray:
    """Unit vectors around random centres, shuffled; float32 (num_bunches * size, dims)."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.normal(size=(num_bunches, dims)), size, axis=0)
    vectors = centres + spread * rng.normal(size=centres.shape)
    return unit(rng.permutation(vectors))


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def by_hand(vectors, eps, key, is_new, stands) -> np.ndarray:
    """The rule, item by item, without clusters."""
    num, stands = len(vectors), stands.copy()
    was_kept = ~is_new & (stands == np.arange(num))
    order = sorted(range(num), key=lambda i: (not was_kept[i], -key[i], i))
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    for rank, item in enumerate(order):
        if is_new[item] and rank:
            above = max(order[:rank], key=lambda other: cosines[item, other])
            if cosines[item, above] >= 1 - eps:
                stands[item] = stands[above]
    return stands


def find(vectors, eps, key, is_new=None, stands=None, num_clusters=None) -> np.ndarray:
    num = len(vectors)
    is_new = np.ones(num, bool) if is_new is None else is_new
    stands = np.arange(num) if stands is None else stands
    return semantic.semantic_duplicates(vectors, eps, num_clusters, [key], is_new, stands)


@pytest.mark.parametrize("eps", [0.01, 0.1, 0.4])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_the_rule_holds_in_one_cluster(eps, chunk, monkeypatch):
    monkeypatch.setattr(semantic, "_ROWS", chunk)
    monkeypatch.setattr(semantic, "_COLUMNS", chunk + 4)
    vectors = bunches(20, 10, spread=0.15)
    key = np.random.default_rng(1).random(len(vectors))
    expected = by_hand(vectors, eps, key, np.ones(len(vectors), bool), np.arange(len(vectors)))
    found = find(vectors, eps, key)
    assert (found == expected).all()
    assert 0 < (found != np.arange(len(found))).sum() < len(found) or eps > 0.1
    assert (found[found] == found).all(), "whoever stands for another is kept"


def test_clusters_miss_few_pairs_and_invent_none():
    vectors = bunches(200, 10, spread=0.15)
    num = len(vectors)
    key = np.random.default_rng(1).random(num)
    labels = semantic.cluster(vectors, 45)
    assert 30 < len(np.unique(labels)) <= 45
    assert (semantic.cluster(vectors.copy(), 45) == labels).all(), "the seed is fixed"
    exact = find(vectors, 0.1, key, num_clusters=1) != np.arange(num)
    by_clusters = find(vectors, 0.1, key, num_clusters=45)
    is_found = by_clusters != np.arange(num)
    assert (labels[is_found] == labels[by_clusters[is_found]]).all()
    assert not (is_found & ~exact).any()
    assert is_found.sum() > 0.98 * exact.sum() > 0


def test_only_within_a_cluster_is_compared(monkeypatch):
    vectors = np.repeat(unit(np.eye(4)), 2, axis=0)
    monkeypatch.setattr(semantic, "cluster", lambda *_: np.array([0, 1] * 4))
    assert (find(vectors, 0.1, np.zeros(8), num_clusters=2) == np.arange(8)).all()


def test_half_precision_and_length_do_not_matter():
    vectors = bunches(20, 10, spread=0.15)
    key = np.random.default_rng(1).random(len(vectors))
    expected = find(vectors, 0.1, key)
    assert (find(vectors.astype(np.float16), 0.1, key) == expected).mean() > 0.98
    assert (find(3 * vectors, 0.1, key) == expected).all()


def test_earlier_results_stay_and_who_was_kept_ranks_first():
    vectors = bunches(20, 10, spread=0.15)
    num = len(vectors)
    key = np.random.default_rng(1).random(num)
    is_new = np.arange(num) >= num // 2
    stands = np.arange(num)
    stands[: num // 2] = find(vectors[: num // 2], 0.1, key[: num // 2])
    found = find(vectors, 0.1, key, is_new, stands)
    assert (found[: num // 2] == stands[: num // 2]).all()
    assert (found == by_hand(vectors, 0.1, key, is_new, stands)).all()
    assert (found != by_hand(vectors, 0.1, key, np.ones(num, bool), np.arange(num))).any(), (
        "the order of arrival counts"
    )
    assert (find(vectors, 0.1, key, np.zeros(num, bool), stands) == stands).all()


def test_a_better_new_one_gives_way_to_a_kept_one():
    pair = unit(np.array([[1.0, 0.0], [1.0, 0.01]]))
    assert find(pair, 0.1, np.array([0.0, 9.0])).tolist() == [1, 1]
    assert find(pair, 0.1, np.array([0.0, 9.0]), np.array([False, True])).tolist() == [0, 0]


def test_number_of_clusters():
    assert semantic.default_clusters(20_000) == 1
    assert semantic.default_clusters(1_000_000) == 1000
    few = bunches(3, 1, 0.1)
    assert len(semantic.cluster(few, 10)) == 3
    assert semantic.cluster(np.repeat(few, 50, axis=0), 30).max() < 30, "more clusters than different items"


def test_distance():
    vectors = unit(np.array([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]))
    found = semantic.cosine_distance(2 * vectors, np.array([0, 0, 1]), np.array([1, 2, 1]))
    assert found == pytest.approx([1 - 0.5**0.5, 2, 0], abs=1e-6)
