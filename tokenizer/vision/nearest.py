"""The nearest code of every vector, exactly, without the whole matrix of distances.

The reference holds N x K distances, several copies of 1 GiB for one 720 x 720 image with Emu3's 32,768 codes. Here
chunks of them fit a cache; compiled for a GPU, one kernel measures and compares, and no distance is ever written.

Shapes: N vectors, D dimensions, K codes.
"""

import torch
from torch import Tensor

_DISTANCE_ELEMENTS = 1 << 23  # 32 MiB of fp32 distances at a time; all of a 720x720 image would be 1 GiB
_CACHED_ELEMENTS = 1 << 18  # 1 MiB stays in a core's cache: 0.08 s for 1,024 vectors and 32,768 codes instead of 0.31 s
_UNROLLED_DIMS = 16  # up to here a compiler turns distances and their minimum into one loop


@torch.no_grad()
def nearest_codes(z_ND: Tensor, codebook_KD: Tensor, norms_K: Tensor) -> Tensor:
    """Index of the nearest code (L2; the first of equals), int64 (N,). `norms_K` is (codebook_KD**2).sum(1).

    Codes are the reference's, in fp32 on a CPU; compiled, sums in another order may settle near-ties differently.
    """
    if torch.compiler.is_compiling():
        return _distances(z_ND, codebook_KD, norms_K).argmin(1)
    elements = _CACHED_ELEMENTS if z_ND.device.type == "cpu" else _DISTANCE_ELEMENTS
    rows = max(1, min(len(z_ND), elements // len(codebook_KD)))
    codes = torch.empty(len(z_ND), dtype=torch.int64, device=z_ND.device)
    distances = z_ND.new_empty(rows, len(codebook_KD))
    products = torch.empty_like(distances)
    for start in range(0, len(z_ND), rows):
        z = z_ND[start : start + rows]
        found, product = distances[: len(z)], products[: len(z)]
        # The reference's order of operations: another one would settle near-ties differently.
        torch.add((z**2).sum(1, keepdim=True), norms_K, out=found)
        torch.matmul(z, codebook_KD.T, out=product)
        found -= product.mul_(2)
        codes[start : start + rows] = found.argmin(1)
    return codes


def _distances(z_ND: Tensor, codebook_KD: Tensor, norms_K: Tensor) -> Tensor:
    """Squared distances (N, K); a product of few dimensions as a sum, which a compiler need not store."""
    num_dims = z_ND.shape[1]
    if num_dims > _UNROLLED_DIMS:
        product = z_ND @ codebook_KD.T
    else:
        product = z_ND[:, :1] * codebook_KD[:, 0]
        for dim in range(1, num_dims):
            product = product + z_ND[:, dim : dim + 1] * codebook_KD[:, dim]
    return (z_ND**2).sum(1, keepdim=True) + norms_K - 2 * product
