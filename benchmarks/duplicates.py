"""Near duplicates among synthetic 64-bit hashes: seconds, bytes per hash, and how many planted copies are found.

    all pairs     every hash compared with every other (numpy, popcount of xor) on a sample, scaled by the square
    near.py       one full pass over all hashes
    1 % new       the same hashes stand decided, and one hundredth more arrives

A tenth of the hashes are copies of others with 1 to `--radius` bits flipped; a thousandth are one hash, as blank
pictures are. Recall is the share of copies that end in the group of their original. Bytes are the peak of what the
search allocates (tracemalloc), the hashes themselves (8) and the result (8) included.
"""

import argparse
import time
import tracemalloc

import numpy as np

from tokenmill.stages.select.near import hamming, near_duplicates
from tokenmill.storage import cpu

BRUTE = 20_000


def corpus(num: int, radius: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint64 (num,) and, for the last tenth, int64 positions of their originals."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, num, np.uint64)
    hashes[: num // 1000] = 0x8000_0000_0000_0000
    num_copies = num // 10
    originals = rng.integers(num // 1000, num - num_copies, num_copies)
    copies = hashes[originals]
    flips = rng.integers(1, radius + 1, num_copies)
    for step in range(radius):
        bit = np.uint64(1) << rng.integers(0, 64, num_copies, np.uint64)
        copies = np.where(step < flips, copies ^ bit, copies)
    hashes[num - num_copies :] = copies
    return hashes, originals


def all_pairs(hashes: np.ndarray, radius: int) -> float:
    """Seconds for every pair of `hashes`."""
    start = time.perf_counter()
    for row in range(0, len(hashes), 64):
        np.count_nonzero(hamming(hashes[row : row + 64, None], hashes[None, row:]) <= radius)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=10_000_000, help="hashes")
    parser.add_argument("--radius", type=int, default=6, help="bits in which copies may differ")
    options = parser.parse_args()
    num, radius = options.num, options.radius
    hashes, originals = corpus(num, radius, seed=0)

    brute_s = all_pairs(hashes[:BRUTE], radius) * (num / BRUTE) ** 2
    print(cpu.describe())
    print(f"all pairs, scaled from {BRUTE:,}: {brute_s:,.0f} s")

    own = np.arange(num)
    keys = [np.zeros(num, np.float32)]
    tracemalloc.start()
    start = time.perf_counter()
    stands = near_duplicates(hashes, radius, keys, np.ones(num, bool), own)
    full_s = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1] + hashes.nbytes + own.nbytes
    tracemalloc.stop()
    found = (stands[originals] == stands[num - len(originals) :]).mean()
    kept = np.count_nonzero(stands == own)
    print(
        f"near.py, {num:,} hashes, radius {radius}: {full_s:,.0f} s, {num / full_s:,.0f} hashes/s, {peak / num:.0f} "
        f"bytes per hash, recall {found:.4f}, {kept:,} stay; {brute_s / full_s:,.0f} times as fast as all pairs"
    )

    more, _ = corpus(num // 100, radius, seed=1)
    grown = np.concatenate([hashes, more])
    is_new = np.arange(len(grown)) >= num
    start = time.perf_counter()
    before = np.concatenate([stands, np.arange(num, len(grown))])
    after = near_duplicates(grown, radius, [np.zeros(len(grown), np.float32)], is_new, before)
    new_s = time.perf_counter() - start
    assert np.array_equal(after[:num], stands), "an old verdict changed"
    print(f"1 % new ({len(more):,}): {new_s:,.0f} s, {new_s / full_s:.2f} of the full pass; old verdicts stay")


if __name__ == "__main__":
    main()
