"""Near duplicates: 64-bit perceptual hashes -> groups within a Hamming radius -> which member of a group stays.

Exact, and never all pairs: the 64 bits are cut into radius + k blocks, so that two hashes within the radius agree in k
whole blocks; the hashes are sorted once by each choice of k blocks and compared only with neighbours that agree (Manku,
Jain, Das Sarma, "Detecting near-duplicates for web crawling", WWW 2007, section 3). k is chosen by cost; k = 0 compares
each new hash with all, which is cheapest when very few are new; where few are, only these are put into tables
(few.py). Equal hashes are one, and a crowd that is found to be one
group is not compared further, so that a million blank pictures cost what a million others do.

10 million hashes, radius 6, one core: see benchmarks/duplicates.py; about 40 bytes each at the peak.
"""

import math
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pyarrow as pa

from tokenmill.stages.select.few import cost_ns, pairs_with_few

BITS = 64
MAX_RADIUS = 15  # two strangers differ in 32 bits on average, with a standard deviation of 4

_SLICE = 1 << 17  # hashes in work at a time: bounds the temporaries
_CACHED = 1 << 15  # hashes whose bits are moved at a time: they stay in the core's cache
_CROWD = 256  # members from which a run is compared row by row, looking at its groups
_ROWS = 256  # of a crowd, compared before its groups are looked at again
_CELLS = 1 << 18  # pairs of a crowd that are compared at a time
_SAMPLE = 1024  # members of a crowd among which its largest group is looked for

# Measured on one core, ns: only their ratios matter.
_TABLE_NS, _SORT_NS, _CANDIDATE_NS, _CELL_NS = 100_000, 60, 15, 2

Pairs = tuple[np.ndarray, np.ndarray]


class Groups:
    """Disjoint sets over 0..num-1; a set's root is its least member. 4 bytes an item."""

    def __init__(self, num: int):
        self._parent = np.arange(num, dtype=np.int32 if num < 2**31 else np.int64)

    def roots(self, items: np.ndarray) -> np.ndarray:
        """The roots of `items`, int (N,)."""
        found = self._parent[items]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parent[items] = found
        return found

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        """Make one set of each pair's two, int (N,) each."""
        while len(first):
            first, second = self.roots(first), self.roots(second)
            differ = first != second
            first, second = first[differ], second[differ]
            # Of several edges at one root only the least is kept here; the others come round again.
            np.minimum.at(self._parent, np.maximum(first, second), np.minimum(first, second))

    def labels(self) -> np.ndarray:
        """The root of every item, int (num,)."""
        while True:
            above = self._parent[self._parent]
            if np.array_equal(above, self._parent):
                return above
            self._parent = above


def parse_hashes(texts: pa.ChunkedArray) -> np.ndarray:
    """uint64 (N,) of N texts of 16 hex digits. Raises pa.ArrowInvalid for other lengths and nulls."""
    parts = [np.empty(0, np.uint64)]
    for chunk in texts.chunks:
        if chunk.null_count:
            raise pa.ArrowInvalid("a hash is null; filter before parsing")
        fixed = chunk.cast(pa.binary()).cast(pa.binary(16))
        digits = np.frombuffer(fixed.buffers()[1], np.uint8)[fixed.offset * 16 : (fixed.offset + len(fixed)) * 16]
        values = (digits & 15) + 9 * (digits >> 6)  # letters stand 9 after their last four bits
        parts.append((values[0::2] << 4 | values[1::2]).view(">u8").astype(np.uint64))
    return np.concatenate(parts)


def near_duplicates(
    hashes: np.ndarray, radius: int, keys: list[np.ndarray], is_new: np.ndarray, stands: np.ndarray
) -> np.ndarray:
    """Which item stands for each, int64 (N,); an item that stands for itself is kept.

    `hashes` uint64 (N,); `keys` float (N,) each, the more the better, the first decides first and position decides
    last; `is_new` bool (N,); `stands` int64 (N,), the result of earlier passes: only entries of new items are changed,
    and those must be their own. In a group with items that were kept before, all new ones give way to the best of
    these; else the best new one stays and the others give way.
    """
    stands = stands.copy()
    if not is_new.any():
        return stands
    labels = _labels(hashes, radius, is_new, stands)
    shared = np.bincount(labels, minlength=len(labels)) > 1
    own = np.arange(len(stands))
    # Earlier duplicates stand for nothing, whatever their scores.
    members = np.flatnonzero(shared[labels] & (is_new | (stands == own)))
    order = np.lexsort([members, *(-key[members] for key in reversed(keys)), is_new[members], labels[members]])
    members = members[order]
    is_first = np.ones(len(members), bool)
    is_first[1:] = labels[members[1:]] != labels[members[:-1]]
    best = np.zeros(len(labels), np.int64)
    best[labels[members[is_first]]] = members[is_first]
    moving = members[is_new[members]]
    stands[moving] = best[labels[moving]]
    return stands


def hamming(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Bits in which hashes differ, uint8, of uint64 arrays that broadcast."""
    return np.bitwise_count(first ^ second)


def _labels(hashes: np.ndarray, radius: int, is_new: np.ndarray, stands: np.ndarray) -> np.ndarray:
    """Group of each hash, int (N,): connected by pairs within the radius of which one is new, and by earlier results.

    Pairs of old items were decided when one of them was new.
    """
    order = np.argsort(hashes)
    ordered = hashes[order]
    is_first = np.ones(len(ordered), bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    distinct = ordered[is_first]
    del ordered
    at = np.empty(len(hashes), np.int32 if len(hashes) < 2**31 else np.int64)
    at[order] = np.cumsum(is_first, dtype=at.dtype) - 1
    del order, is_first
    asked = np.zeros(len(distinct), bool)
    asked[at[is_new]] = True
    groups = Groups(len(distinct))
    linked = np.flatnonzero(stands != np.arange(len(stands)))
    groups.join(at[linked], at[stands[linked]])
    for first, second in wanted_pairs(distinct, radius, asked, groups):
        groups.join(first, second)
    return groups.labels()[at]


def wanted_pairs(hashes: np.ndarray, radius: int, asked: np.ndarray, groups: Groups | None = None) -> Iterator[Pairs]:
    """The pairs of `near_pairs`, found with the least work."""
    num_asked = int(asked.sum())
    num_shared, cost = cheapest(len(hashes), num_asked, radius)
    of_few, num_few_shared = cost_ns(len(hashes), num_asked, radius)
    if cost <= of_few:
        yield from near_pairs(hashes, radius, num_shared, asked, groups)
        return
    for pair, crowds in pairs_with_few(hashes, np.flatnonzero(asked), radius, num_few_shared):
        yield pair
        for crowd in crowds:
            yield from _compare_crowd(hashes, crowd, radius, asked, groups)


def cheapest(num: int, num_asked: int, radius: int) -> tuple[int, float]:
    """How many blocks must agree, for the least work: 0 compares all with all that are asked; and its cost in ns."""
    best, least = 0, float(_CELL_NS) * num * num_asked + _TABLE_NS
    for num_shared in range(1, BITS - radius + 1):
        num_tables = math.comb(radius + num_shared, num_shared)
        if num_tables * _TABLE_NS > least:
            break
        key_bits = num_shared * BITS // (radius + num_shared)
        candidates = num * num / 2 ** (key_bits + 1)
        cost = num_tables * (_TABLE_NS + num * _SORT_NS + candidates * _CANDIDATE_NS)
        if cost < least:
            best, least = num_shared, cost
    return best, least


def near_pairs(
    hashes: np.ndarray, radius: int, num_shared: int, asked: np.ndarray, groups: Groups | None = None
) -> Iterator[Pairs]:
    """Index pairs within the radius of which one is asked for; a pair may come several times.

    `hashes` uint64 (N,), ascending and distinct; `asked` bool (N,). With `groups`, to which the caller joins what comes
    before asking for more, pairs within a group may be left out.
    """
    num_blocks = radius + num_shared
    edges = [BITS * number // num_blocks for number in range(num_blocks + 1)] if num_blocks else [0, BITS]
    for chosen in combinations(range(num_blocks), num_shared):
        moves = _moves(edges, chosen)
        key_bits = sum(edges[block + 1] - edges[block] for block in chosen)
        below_key = np.uint64((1 << (BITS - key_bits)) - 1)
        keyed = np.empty_like(hashes)
        for start in range(0, len(hashes), _CACHED):
            keyed[start : start + _CACHED] = _moved(hashes[start : start + _CACHED], moves)
        keyed.sort()
        back = [(to, width, start) for start, width, to in moves]
        for starts, lengths in _runs(keyed, below_key):
            for first, second in _compare(keyed, starts[lengths < _CROWD], lengths[lengths < _CROWD], radius):
                pair = tuple(np.searchsorted(hashes, _moved(side, back)) for side in (first, second))
                wanted = asked[pair[0]] | asked[pair[1]]
                yield pair[0][wanted], pair[1][wanted]
            for start, length in zip(starts[lengths >= _CROWD], lengths[lengths >= _CROWD], strict=True):
                crowd = np.searchsorted(hashes, _moved(keyed[start : start + length], back))
                yield from _compare_crowd(hashes, crowd, radius, asked, groups)


def _moves(edges: list[int], chosen: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(from bit, width, to bit) of the bit fields of a bijection that puts the chosen blocks on top."""
    blocks = range(len(edges) - 1)
    order = sorted(chosen, reverse=True) + sorted(set(blocks) - set(chosen), reverse=True)
    moves: list[tuple[int, int, int]] = []
    to = BITS
    for block in order:
        start, width = edges[block], edges[block + 1] - edges[block]
        to -= width
        if moves and moves[-1][0] == start + width:
            moves[-1] = (start, width + moves[-1][1], to)
        else:
            moves.append((start, width, to))
    return moves


def _moved(values: np.ndarray, moves: list[tuple[int, int, int]]) -> np.ndarray:
    moved = np.zeros_like(values)
    for start, width, to in moves:
        moved |= ((values >> np.uint64(start)) & np.uint64((1 << width) - 1)) << np.uint64(to)
    return moved


def _runs(keyed: np.ndarray, below_key: np.uint64) -> Iterator[Pairs]:
    """Starts and lengths, int64, of the runs of at least two sorted hashes that agree above `below_key`."""
    num, opened = len(keyed), 0
    for start in range(0, num, _SLICE):
        stop = min(num, start + _SLICE)
        first = max(1, start)
        breaks = np.flatnonzero((keyed[first - 1 : stop - 1] ^ keyed[first:stop]) > below_key) + first
        if stop == num:
            breaks = np.append(breaks, num)
        if not len(breaks):
            continue
        starts = np.concatenate([[opened], breaks[:-1]])
        lengths = breaks - starts
        opened = breaks[-1]
        yield starts[lengths > 1], lengths[lengths > 1]


def _compare(keyed: np.ndarray, starts: np.ndarray, lengths: np.ndarray, radius: int) -> Iterator[Pairs]:
    """Pairs of hashes within the radius, of short runs: all at once, each with the next, the one after it, ..."""
    ends = np.repeat(starts + lengths, lengths)
    at = np.arange(len(ends)) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    step = 1
    while True:
        alive = at + step < ends
        at, ends = at[alive], ends[alive]
        if not len(at):
            return
        first, second = keyed[at], keyed[at + step]
        near = hamming(first, second) <= radius
        if near.any():
            yield first[near], second[near]
        step += 1


def _compare_crowd(
    hashes: np.ndarray, crowd: np.ndarray, radius: int, asked: np.ndarray, groups: Groups | None
) -> Iterator[Pairs]:
    """Pairs of the items `crowd`, int (M,): rows of asked items against all, members of the largest group last.

    Once only these are left it is done: every other member was a row.
    """
    todo = crowd[asked[crowd]]
    width = _CELLS // _ROWS
    while len(todo):
        if groups is not None:
            roots, counts = np.unique(groups.roots(crowd[:: len(crowd) // _SAMPLE + 1]), return_counts=True)
            last = groups.roots(todo) == roots[counts.argmax()]
            todo = np.concatenate([todo[~last], todo[last]])
            if last.all():
                return
        rows, todo = todo[:_ROWS], todo[_ROWS:]
        row_hashes = hashes[rows][:, None]
        for start in range(0, len(crowd), width):
            part = crowd[start : start + width]
            row, column = np.nonzero(hamming(row_hashes, hashes[part]) <= radius)
            first, second = rows[row], part[column]
            others = first != second
            if others.any():
                yield first[others], second[others]
