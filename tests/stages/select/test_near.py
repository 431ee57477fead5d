"""Near duplicates: no pair is missed, crowds are not compared all with all, and who stays."""

import numpy as np
import pyarrow as pa
import pytest

from tokenmill.stages.select import few, near


def flips(rng: np.random.Generator, num: int, bits: int) -> np.ndarray:
    """`num` masks of at most `bits` random bits."""
    masks = np.zeros(num, np.uint64)
    for _ in range(bits):
        masks ^= np.uint64(1) << rng.integers(0, 64, num, dtype=np.uint64)
    return masks


def planted(num: int, radius: int, seed: int = 0) -> np.ndarray:
    """Distinct ascending hashes, most of which have neighbours at a distance of up to a little over the radius."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 2**64, num // (radius + 3), dtype=np.uint64)
    copies = [first ^ flips(rng, len(first), bits) for bits in range(1, radius + 3)]
    return np.unique(np.concatenate([first, *copies]))


def brute_force(hashes: np.ndarray, radius: int) -> set[tuple[int, int]]:
    near_matrix = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= radius
    return {(int(a), int(b)) for a, b in np.argwhere(np.triu(near_matrix, 1))}


def components(num: int, pairs: set[tuple[int, int]]) -> list[int]:
    labels = list(range(num))
    for a, b in pairs:
        old, new = max(labels[a], labels[b]), min(labels[a], labels[b])
        labels = [new if label == old else label for label in labels]
    return labels


def found_pairs(hashes: np.ndarray, radius: int, num_shared: int, asked: np.ndarray) -> set[tuple[int, int]]:
    found = set()
    for first, second in near.near_pairs(hashes, radius, num_shared, asked):
        assert (near.hamming(hashes[first], hashes[second]) <= radius).all()
        found |= {(min(a, b), max(a, b)) for a, b in zip(first.tolist(), second.tolist(), strict=True)}
    return found


def alone(num: int) -> tuple[np.ndarray, np.ndarray]:
    return np.ones(num, bool), np.arange(num)


@pytest.mark.parametrize("crowd", [2, 256], ids=["as crowds", "as runs"])
@pytest.mark.parametrize(
    ("radius", "num_shared"), [(r, k) for r in (0, 1, 3, 6, 11, 15) for k in range(4) if r + k < 16]
)
def test_every_pair_is_found(radius, num_shared, crowd, monkeypatch):
    monkeypatch.setattr(near, "_CROWD", crowd)
    monkeypatch.setattr(near, "_SLICE", 100)  # runs cross the slices' borders
    monkeypatch.setattr(near, "_ROWS", 16)
    hashes = planted(600, radius, seed=radius)
    expected = brute_force(hashes, radius)
    assert expected or radius == 0
    everything = np.ones(len(hashes), bool)
    assert found_pairs(hashes, radius, num_shared, everything) == expected
    asked = np.random.default_rng(1).random(len(hashes)) < 0.2
    some = {(a, b) for a, b in expected if asked[a] or asked[b]}
    assert found_pairs(hashes, radius, num_shared, asked) == some


@pytest.mark.parametrize("crowd", [2, 256], ids=["as crowds", "as pairs"])
@pytest.mark.parametrize(("radius", "num_shared"), [(3, 1), (3, 2), (6, 2), (6, 3), (11, 4), (15, 5)])
def test_every_pair_with_one_of_few_is_found(radius, num_shared, crowd, monkeypatch):
    monkeypatch.setattr(few, "_CROWD", crowd)
    monkeypatch.setattr(few, "_SLICE", 100)
    hashes = planted(600, radius, seed=radius)
    asked = np.random.default_rng(1).random(len(hashes)) < 0.2
    expected = {(a, b) for a, b in brute_force(hashes, radius) if asked[a] or asked[b]}
    found, num_crowds = set(), 0
    everything = np.arange(len(hashes))
    for (first, second), crowds in few.pairs_with_few(hashes, np.flatnonzero(asked), radius, num_shared):
        assert asked[second].all() and (near.hamming(hashes[first], hashes[second]) <= radius).all()
        found |= {(min(a, b), max(a, b)) for a, b in zip(first.tolist(), second.tolist(), strict=True)}
        for members in crowds:
            num_crowds += 1
            assert (np.diff(members) > 0).all() and asked[members].sum() >= crowd and np.isin(members, everything).all()
            found |= {(a, b) for a, b in brute_force_of(hashes, members, radius) if asked[a] or asked[b]}
    assert found == expected
    assert bool(num_crowds) == (crowd == 2)


def brute_force_of(hashes: np.ndarray, members: np.ndarray, radius: int) -> set[tuple[int, int]]:
    return {(int(members[a]), int(members[b])) for a, b in brute_force(hashes[members], radius)}


def work(monkeypatch, num_shared: int, of_few: bool = False) -> None:
    """Let pairs be found by so many blocks, by tables of all or of the few."""
    monkeypatch.setattr(near, "cheapest", lambda *_: (num_shared, 1.0))
    monkeypatch.setattr(near, "cost_ns", lambda *_: (0.0 if of_few else 2.0, num_shared))


@pytest.mark.parametrize(("num_shared", "of_few"), [(0, False), (1, False), (3, False), (1, True), (3, True)])
@pytest.mark.parametrize("crowd", [2, 256])
def test_groups_are_the_connected_components(num_shared, of_few, crowd, monkeypatch):
    monkeypatch.setattr(near, "_CROWD", crowd)
    monkeypatch.setattr(few, "_CROWD", crowd)
    monkeypatch.setattr(near, "_ROWS", 8)
    work(monkeypatch, num_shared, of_few)
    rng = np.random.default_rng(2)
    crowded = np.uint64(2**63) ^ flips(rng, 150, 4)  # a ball, in which groups are skipped
    hashes = np.concatenate([planted(300, 4), crowded])
    labels = near._labels(hashes, 4, *alone(len(hashes)))
    expected = components(len(hashes), brute_force(hashes, 4))
    assert len(set(expected)) < len(set(hashes.tolist()))
    same = labels[:, None] == labels[None]
    assert (same == (np.array(expected)[:, None] == np.array(expected)[None])).all()


def test_work_is_chosen_by_cost():
    assert near.cheapest(100, 100, 6)[0] == 0
    assert near.cheapest(10_000_000, 100, 6)[0] == 0, "very few new ones are compared with all"
    assert near.cheapest(10_000_000, 10_000_000, 6)[0] > 1
    for num_few, is_few in ((3, False), (10_000, True), (1_000_000, True), (10_000_000, False)):
        assert (few.cost_ns(10_000_000, num_few, 6)[0] < near.cheapest(10_000_000, num_few, 6)[1]) == is_few, num_few


def test_a_crowd_is_not_compared_all_with_all(monkeypatch):
    cells = []

    def counted(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        distances = np.bitwise_count(first ^ second)
        cells.append(distances.size)
        return distances

    monkeypatch.setattr(near, "hamming", counted)
    rng = np.random.default_rng(3)
    blank, nearly = np.zeros(100_000, np.uint64), flips(rng, 30_000, 3)
    hashes = np.concatenate([blank, nearly, rng.integers(0, 2**64, 100_000, dtype=np.uint64)])
    stands = near.near_duplicates(hashes, 6, [], *alone(len(hashes)))
    assert (stands[:130_000] == 0).all()
    assert sum(cells) < 30_000**2 / 2, "fewer than the crowd's own pairs"
    assert max(cells) <= 2**20, "in bounded chunks"


def test_hashes_are_read_from_their_texts():
    values = [0, 1, 0xFFFFFFFFFFFFFFFF, 0x0123456789ABCDEF]
    texts = [f"{value:016x}" for value in values]
    column = pa.chunked_array([texts[:1], texts[1:]])
    assert near.parse_hashes(column).tolist() == values
    assert near.parse_hashes(column.slice(2)).tolist() == values[2:]
    assert near.parse_hashes(pa.chunked_array([["FFFFFFFFFFFFFFFE"]])).tolist() == [2**64 - 2]
    assert near.parse_hashes(pa.chunked_array([], pa.string())).dtype == np.uint64
    for wrong in (["abc"], [None], ["0123456789abcdefff"]):
        with pytest.raises(pa.ArrowInvalid):
            near.parse_hashes(pa.chunked_array([wrong], pa.string()))


# Hashes on a line: 0, 1, 3, 7, ... differ in one bit from the next.
LINE = np.array([2**bits - 1 for bits in range(65)], np.uint64)


def decide(hashes, keys=(), kept=(), stands=None, radius=1) -> list[int]:
    """`kept` were kept before; `stands` maps earlier duplicates to those that stand for them; the others are new."""
    is_new, given = alone(len(hashes))
    is_new[list(kept)] = False
    for item, other in (stands or {}).items():
        is_new[item], given[item] = False, other
    return near.near_duplicates(hashes, radius, [np.array(key, float) for key in keys], is_new, given).tolist()


def test_the_best_of_a_group_stays():
    assert decide(LINE[:3], [[1, 3, 2]]) == [1, 1, 1]
    assert decide(LINE[:3], [[1, 3, 3], [9, 1, 2]]) == [2, 2, 2], "the second key decides among equals"
    assert decide(LINE[:3], [[1, 1, 1]]) == [0, 0, 0], "then the position"
    assert decide(LINE[[0, 1, 9]], [[1, 3, 2]]) == [1, 1, 2]


def test_who_was_kept_before_stays_though_a_better_one_comes():
    assert decide(LINE[:3], [[1, 3, 2]], kept=[0]) == [0, 0, 0]


def test_a_bridge_between_two_kept_ones_gives_way_and_both_stay():
    assert decide(LINE[:3], [[1, 3, 2]], kept=[0, 2]) == [0, 2, 2], "to the better of the two"


def test_earlier_duplicates_stay_duplicates_and_lead_to_who_stands_for_them():
    assert decide(LINE[:3], [[1, 3, 2]], kept=[0], stands={1: 0}) == [0, 0, 0]
    assert decide(LINE[[0, 8, 9]], kept=[0], stands={1: 0}) == [0, 0, 0]


def test_pairs_of_old_ones_are_not_decided_again():
    assert decide(LINE[[0, 1, 30]], [[1, 3, 2]], kept=[0, 1]) == [0, 1, 2]
    assert decide(LINE[[0, 1]], kept=[0, 1]) == [0, 1]


def test_tables_and_direct_comparison_decide_alike(monkeypatch):
    rng = np.random.default_rng(4)
    hashes = rng.permutation(planted(900, 5))
    num = len(hashes)
    key = rng.random(num)
    before = np.zeros(num, bool)
    before[: num // 2] = True
    _, stands = alone(num)
    stands[: num // 2] = near.near_duplicates(hashes[: num // 2], 5, [key[: num // 2]], *alone(num // 2))
    results = []
    for num_shared, of_few in ((0, False), (1, False), (2, False), (3, False), (1, True), (2, True), (3, True)):
        work(monkeypatch, num_shared, of_few)
        results.append(near.near_duplicates(hashes, 5, [key], ~before, stands))
    assert (results[0] != np.arange(num)).any()
    assert all((result == results[0]).all() for result in results)
    assert (results[0][: num // 2] == stands[: num // 2]).all()
    assert (results[0][results[0]] == results[0]).all(), "whoever stands for another is kept"
