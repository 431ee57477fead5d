"""Few hashes beside many: pairs within a Hamming radius of which one is among the few, in one pass over the many.

As in near.py two hashes within the radius agree in k whole blocks of radius + k. The few alone are put into a table by
each choice of k blocks, and all are looked up in it: nothing of the many is sorted or kept, so that what comes later
costs its own comparisons and a pass of some nanoseconds per table over what was there.
"""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np

BITS = 64
_SLICE = 1 << 15  # hashes at a time: they stay in the core's cache
_MAX_KEY_BITS = 22  # a table of bytes by key still does
_CROWD = 256  # members of the few under one key from which its pairs are left to the caller
_PASS_NS, _FEW_NS, _CANDIDATE_NS, _KEY_NS = 5.0, 200.0, 25.0, 2.0  # measured on one core; their ratios matter

Pairs = tuple[np.ndarray, np.ndarray]


def cost_ns(num: int, num_few: int, radius: int) -> tuple[float, int]:
    """Of the cheapest way, and how many blocks agree in it."""
    best = (math.inf, 1)
    for num_shared in range(1, BITS - radius + 1):
        key_bits = -(-num_shared * BITS // (radius + num_shared))
        if key_bits > _MAX_KEY_BITS:
            break
        candidates = num * num_few / 2**key_bits
        table = num * _PASS_NS + num_few * _FEW_NS + candidates * _CANDIDATE_NS + 2**key_bits * _KEY_NS
        best = min(best, (math.comb(radius + num_shared, num_shared) * table, num_shared))
    return best


def pairs_with_few(
    hashes: np.ndarray, few: np.ndarray, radius: int, num_shared: int
) -> Iterator[tuple[Pairs, list[np.ndarray]]]:
    """By choice of blocks: index pairs within the radius, the second one of `few`; and crowds, indices ascending, that
    agree in these blocks with so many of `few` that their pairs are not looked for.

    `hashes` uint64 (N,), distinct; `few` int (M,) ascending. A pair may come several times.
    """
    num_blocks = radius + num_shared
    edges = [BITS * number // num_blocks for number in range(num_blocks + 1)]
    blocks = [
        ((hashes >> np.uint64(start)) & np.uint64((1 << (stop - start)) - 1)).astype(np.uint16)
        for start, stop in zip(edges, edges[1:], strict=False)
    ]
    widths = [stop - start for start, stop in zip(edges, edges[1:], strict=False)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as workers:  # numpy lets go of the interpreter
        yield from workers.map(
            lambda chosen: _of_table([blocks[n] for n in chosen], [widths[n] for n in chosen], hashes, few, radius),
            combinations(range(num_blocks), num_shared),
        )


def _of_table(
    blocks: list[np.ndarray], widths: list[int], hashes: np.ndarray, few: np.ndarray, radius: int
) -> tuple[Pairs, list[np.ndarray]]:
    keys = _keys([block[few] for block in blocks], widths)
    order = np.argsort(keys, kind="stable")
    members = few[order]
    of_members = hashes[members]
    counts = np.bincount(keys, minlength=1 << sum(widths)).astype(np.int32)
    starts = np.cumsum(counts, dtype=np.int32) - counts
    is_there = counts > 0
    has_crowds = int(counts.max(initial=0)) >= _CROWD
    first, second, crowded = [], [], []
    for start in range(0, len(hashes), _SLICE):
        asked = _keys([block[start : start + _SLICE] for block in blocks], widths)
        hits = np.flatnonzero(is_there.take(asked, mode="clip"))
        at = asked[hits]
        count = counts[at]
        hits += start
        if has_crowds and (in_crowd := count >= _CROWD).any():
            crowded.append((at[in_crowd], hits[in_crowd]))
            hits, at, count = hits[~in_crowd], at[~in_crowd], count[~in_crowd]
        one = np.repeat(hits, count)
        place = np.arange(len(one)) + np.repeat(starts[at] - (np.cumsum(count) - count), count)
        near = np.bitwise_count(hashes[one] ^ of_members[place]) <= radius
        one, other = one[near], members[place[near]]
        is_pair = one != other
        first.append(one[is_pair])
        second.append(other[is_pair])
    pairs = np.concatenate(first or [few[:0]]), np.concatenate(second or [few[:0]])
    return pairs, _crowds(crowded)


def _crowds(crowded: list[Pairs]) -> list[np.ndarray]:
    """Indices by key."""
    if not crowded:
        return []
    keys, at = (np.concatenate(side) for side in zip(*crowded, strict=True))
    order = np.lexsort([at, keys])
    return np.split(at[order], np.flatnonzero(np.diff(keys[order])) + 1)


def _keys(blocks: list[np.ndarray], widths: list[int]) -> np.ndarray:
    """int32 (N,): the bits of the blocks beside each other."""
    found = blocks[0].astype(np.int32)
    for block, width in zip(blocks[1:], widths[1:], strict=True):
        found <<= width
        found |= block
    return found
