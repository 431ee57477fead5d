"""Semantic duplicates: embeddings -> clusters -> which pictures say what a better one of their cluster says.

SemDeDup (Abbas et al., 2303.09540): k-means, then cosines inside each cluster only; an item is a duplicate when its
largest cosine to an item of its cluster that ranks above it is at least 1 - eps. DenseFusion (2407.08303, the recipe
behind Emu3's supplement) thins out 500 million to 14 million with 50,000 clusters and eps 0.4.

Nearly all the work is matrix products in chunks of bounded size, on the CPU or on a GPU. k-means is the spherical one,
trained on 256 samples a cluster as in faiss: thirty lines of torch instead of a dependency of 60 MB. Multiply-adds for
N items of D numbers in K clusters: N K D to assign, N^2 D / 2K to compare, up to 20 * 256 K^2 D to train.
"""

import math

import numpy as np
import torch

SAMPLES_PER_CLUSTER = 256
EXACT = 20_000  # items up to which one cluster is fast enough: seconds, and no pair is missed

_ROUNDS = 20
_ROWS, _COLUMNS = 1024, 16_384  # of a matrix product: 64 MB of cosines
_SEED = 0


def default_clusters(num: int) -> int:
    """1 for few items; else the square root of `num`: then assigning and comparing cost about the same. SemDeDup's own
    50,000 for 440 million are of that order (20,976).
    """
    return 1 if num <= EXACT else round(math.sqrt(num))


def semantic_duplicates(
    embeddings: np.ndarray,
    eps: float,
    num_clusters: int | None,
    keys: list[np.ndarray],
    is_new: np.ndarray,
    stands: np.ndarray,
    device: str = "cpu",
) -> np.ndarray:
    """Which item stands for each, int64 (N,); an item that stands for itself is kept.

    `embeddings` float16 or float32 (N, D); the others as in `near.near_duplicates`. Items that were kept before rank
    above all others; earlier results stay as they are. A new item gives way to whoever stands for the most alike of the
    items above it.
    """
    stands = stands.copy()
    if not is_new.any():
        return stands
    num = len(embeddings)
    was_kept = ~is_new & (stands == np.arange(num))
    order = np.lexsort([np.arange(num), *(-key for key in reversed(keys)), ~was_kept])
    clusters = cluster(embeddings, num_clusters or default_clusters(num), device)[order]
    by_cluster = np.argsort(clusters, kind="stable")
    sizes = np.bincount(clusters)
    stop = 0
    for size in sizes:
        start, stop = stop, stop + int(size)
        members = order[by_cluster[start:stop]]
        asked = np.flatnonzero(is_new[members])
        if size < 2 or not len(asked):
            continue
        nearest, cosines = _most_alike(embeddings, members, asked, device)
        alike = cosines >= 1 - eps
        # Down the ranks, so that whoever is pointed at has been decided.
        for row, above in zip(asked[alike], nearest[alike], strict=True):
            stands[members[row]] = stands[members[above]]
    return stands


def cosine_distance(embeddings: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """1 - cosine, float64 (M,), of the pairs of items `first` and `second`, int (M,) each."""
    found = np.empty(len(first))
    for start in range(0, len(first), _ROWS):
        part = slice(start, start + _ROWS)
        one, other = (embeddings[side[part]].astype(np.float64) for side in (first, second))
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        found[part] = 1 - np.einsum("nd,nd->n", one, other) / lengths
    return found


def cluster(embeddings: np.ndarray, num_clusters: int, device: str = "cpu") -> np.ndarray:
    """Cluster of each item, int64 (N,), by spherical k-means with a fixed seed; `embeddings` float (N, D).

    Some clusters may be empty. With as many clusters as items, or more, each item may stand alone.
    """
    num = len(embeddings)
    num_clusters = min(num_clusters, num)
    if num_clusters == 1:
        return np.zeros(num, np.int64)
    chosen = np.random.default_rng(_SEED).permutation(num)[: num_clusters * SAMPLES_PER_CLUSTER]
    samples = embeddings[chosen]
    centroids = _rows(samples, slice(0, num_clusters), device)
    for _ in range(_ROUNDS):
        sums = torch.zeros_like(centroids)
        for start in range(0, len(samples), _ROWS):
            rows = _rows(samples, slice(start, start + _ROWS), device)
            sums.index_add_(0, _closest(rows, centroids), rows)
        lengths = sums.norm(dim=1, keepdim=True)
        # An empty cluster keeps its centroid.
        moved = torch.where(lengths > 0, sums / lengths.clamp(min=1e-12), centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    labels = np.empty(num, np.int64)
    for start in range(0, num, _ROWS):
        part = slice(start, start + _ROWS)
        labels[part] = _closest(_rows(embeddings, part, device), centroids).cpu().numpy()
    return labels


def _rows(embeddings: np.ndarray, at: slice | np.ndarray, device: str) -> torch.Tensor:
    """Rows as float32 of length 1, (M, D)."""
    rows = torch.from_numpy(np.ascontiguousarray(embeddings[at])).to(device).float()
    return torch.nn.functional.normalize(rows, dim=1)


def _closest(rows: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    return (rows @ centroids.T).argmax(dim=1)


def _most_alike(
    embeddings: np.ndarray, members: np.ndarray, asked: np.ndarray, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Of each asked position, the position above it with the largest cosine, and that cosine, -1 for the first.

    `members` int (M,), best first; `asked` int (A,), ascending positions in it; returns int64 (A,) and float32 (A,).
    """
    nearest, cosines = np.zeros(len(asked), np.int64), np.full(len(asked), -1, np.float32)
    for first in range(0, len(asked), _ROWS):
        at = asked[first : first + _ROWS]
        rows = _rows(embeddings, members[at], device)
        below = torch.from_numpy(at).to(device)[:, None]
        for start in range(0, int(at[-1]), _COLUMNS):
            stop = min(int(at[-1]), start + _COLUMNS)
            found = rows @ _rows(embeddings, members[start:stop], device).T
            found.masked_fill_(torch.arange(start, stop, device=device)[None] >= below, -1)
            best, column = (each.cpu().numpy() for each in found.max(dim=1))
            part = slice(first, first + len(at))
            better = best > cosines[part]
            cosines[part][better] = best[better]
            nearest[part][better] = column[better] + start
    return nearest, cosines
