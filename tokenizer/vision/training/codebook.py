"""Latents -> a codebook that spends its codes where latents differ, and gives what repeats one code.

A lattice has most of its points where no latent ever is: of 4,096, photos used 17 %. k-means over the latents uses
all, but is drawn to what repeats: one flat colour took hundreds of codes, told apart by nothing but what surrounds it,
noise to a language model. So two things are added here. Latents that are alike count once. And patches that repeat
pixel for pixel are anchored: one code stands at the mean of their latents, and no other comes near it, as far as the
rest leaves room.

Shapes: N vectors, D dimensions, K codes, A anchors.
"""

import torch
from torch import Tensor

from tokenmill.storage.errors import TrainingError
from tokenmill.tokenizer.vision.nearest import nearest_codes

_VECTORS_A_CODE = 16
_SEARCH_STEPS = 16
_ROUNDS = 15
_REPEATS = 8  # of a patch, to be anchored
_ANCHORS = 0.25  # of the codes, at most
_REACH = 0.95  # of a patch's latents lie within its reach; no other code comes nearer than _CLEAR times that
_CLEAR = 1.6
_ROOM = 2  # vectors a code that is no anchor; where anchors leave fewer, they keep less clear
_HALVINGS = 8
_POINTS_AT_ONCE = 4096


def fit_codebook(z_ND: Tensor, patch_N: Tensor, num_codes: int, generator: torch.Generator) -> Tensor:
    """k-means (Lloyd) over the distinct vectors of fp32 (N, D) -> fp32 (K, D), a function of the arguments alone.

    `patch_N` int64: equal where the patches are equal. Raises TrainingError when there are fewer distinct vectors than
    codes.
    """
    anchors, clear = _anchors(z_ND, patch_N, int(num_codes * _ANCHORS))
    points = distinct(z_ND, _VECTORS_A_CODE * num_codes)
    num_free = num_codes - len(anchors)
    free = points[_is_free(points, anchors, clear)]
    for _ in range(_HALVINGS):
        if len(free) < _ROOM * num_free:
            clear = clear / 2
            free = points[_is_free(points, anchors, clear)]
    if len(free) < num_free:
        raise TrainingError(
            f"{len(points):,} distinct latents cannot fit {num_codes:,} codes; give more media or a smaller "
            "codebook_size"
        )
    codebook = torch.cat([anchors, free[torch.randperm(len(free), generator=generator)[:num_free].to(z_ND.device)]])
    for _ in range(_ROUNDS):
        codes = nearest_codes(points, codebook, (codebook**2).sum(1))
        count = torch.bincount(codes, minlength=num_codes)
        means = _means(points, codes, count)
        is_good = (count > 0) & _is_free(means, anchors, clear)
        is_good[: len(anchors)] = True
        means[: len(anchors)] = anchors
        wrong = (~is_good).nonzero().flatten()
        means[wrong] = free[torch.randint(len(free), (len(wrong),), generator=generator).to(z_ND.device)]
        codebook = means
    return codebook


def distinct(z_ND: Tensor, num_wanted: int) -> Tensor:
    """Mean vectors of the cells of the widest grid that leaves `num_wanted` or more; all where there are fewer."""
    low, high = 0.0, float((z_ND.amax(0) - z_ND.amin(0)).max())
    means = torch.unique(z_ND, dim=0)
    for _ in range(_SEARCH_STEPS):
        side = (low + high) / 2
        cells, place = torch.unique(_hashes(torch.floor(z_ND / side).long()), return_inverse=True)
        if len(cells) < num_wanted:
            high = side
            continue
        low = side
        means = _means(z_ND, place, torch.bincount(place, minlength=len(cells)))
    return means


def patch_ids(pixels_BTCHW: Tensor, rows: int, columns: int) -> Tensor:
    """A hash of the pixels of each code, int64 (B * rows * columns)."""
    levels = ((pixels_BTCHW * 0.5 + 0.5) * 255).round().long()
    batch, frames, channels, height, width = levels.shape
    patches = levels.view(batch, frames, channels, rows, height // rows, columns, width // columns)
    return _hashes(patches.permute(0, 3, 5, 1, 2, 4, 6).flatten(0, 2).flatten(1))


def _hashes(values_NP: Tensor) -> Tensor:
    """Of each row of int64 (N, P), int64 (N,): equal where rows are equal."""
    factors = torch.randint(-(2**62), 2**62, (values_NP.shape[1],), generator=torch.Generator().manual_seed(0))
    return (values_NP * factors.to(values_NP.device)).sum(1)  # wraps around, as a hash may


def _anchors(z_ND: Tensor, patch_N: Tensor, at_most: int) -> tuple[Tensor, Tensor]:
    """Mean latents (A, D) of the patches that repeat most, and how near no other code may come (A,).

    One that stands within half of what a more frequent one keeps clear is left out: it would split that one's latents.
    """
    _, place, count = torch.unique(patch_N, return_inverse=True, return_counts=True)
    order = count.argsort(descending=True, stable=True)[:at_most]
    means = _means(z_ND, place, count)
    distances = (z_ND - means[place]).norm(dim=1)
    anchors, clear = z_ND.new_zeros(0, z_ND.shape[1]), z_ND.new_zeros(0)
    for patch in order[count[order] >= _REPEATS]:
        mean = means[patch][None]
        if _is_free(mean, anchors, clear / 2):
            anchors = torch.cat([anchors, mean])
            clear = torch.cat([clear, _CLEAR * distances[place == patch].quantile(_REACH)[None]])
    return anchors, clear


def _is_free(points_ND: Tensor, anchors_AD: Tensor, clear_A: Tensor) -> Tensor:
    """Which points are farther from every anchor than it keeps clear, bool (N,)."""
    parts = points_ND.split(_POINTS_AT_ONCE)
    return torch.cat([(torch.cdist(part, anchors_AD) > clear_A).all(1) for part in parts])


def _means(z_ND: Tensor, place_N: Tensor, count: Tensor) -> Tensor:
    """Mean of the vectors at each of `len(count)` places; zeros at a place without any."""
    total = torch.zeros(len(count), z_ND.shape[1], device=z_ND.device).index_add_(0, place_N, z_ND)
    return total / count.clamp(min=1)[:, None]
