"""Vectors -> codes with gradients, and the patch discriminator: what training needs and `Emu3VQVAE` lacks.

Three quantizers, all exported as a plain nearest-neighbour codebook. FSQ (Mentzer et al. 2023) rounds each dimension to
a fixed lattice: no codebook to learn, none to collapse. VQ learns its codebook by exponential averages and restarts
dead codes; without that, 13 codes of 32,768 survived a small run. k-means fits one to the latents of given weights and
leaves it there (codebook.py). All must run in fp32: in bf16, FSQ [8]^5 moved 5 % of the codes.

Shapes: B batch, D dimensions of a code, K codes, N vectors; `z` (B, D, ...) keeps its other axes.
"""

import torch
from torch import Tensor, nn

from tokenmill.storage.errors import TrainingError
from tokenmill.tokenizer.vision.nearest import nearest_codes
from tokenmill.tokenizer.vision.training.config import fsq_levels

FSQ_SPACING = 0.5  # levels of a unit-scale latent, exact in binary: 8 levels stand at -1.75, -1.25 .. 1.75
_VQ_DECAY = 0.99
_VQ_DEAD_AFTER_STEPS = 100


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """`quantized` going forward; going backward, the gradient passes to `z` as if nothing had been rounded."""
    return z + (quantized - z).detach()


class FsqQuantizer(nn.Module):
    """The lattice [levels]^dim with an even number of levels. `codebook_KD` is what the nearest code is searched in.

    Rounding halves down and clamping at the ends is the nearest neighbour in that lattice, ties included (the first of
    equals has the lower digits). What lies outside is pulled in by the commitment loss.
    """

    def __init__(self, codebook_size: int, dim: int) -> None:
        super().__init__()
        self.levels = fsq_levels(codebook_size, dim)
        digits = torch.cartesian_prod(*[torch.arange(self.levels)] * dim).view(codebook_size, dim)
        self.codebook_KD = nn.Buffer((digits - (self.levels - 1) / 2) * FSQ_SPACING)
        self._places_D = nn.Buffer(self.levels ** torch.arange(dim - 1, -1, -1))

    def take(self, codebook_KD: Tensor) -> None:
        """Go on with the codebook of given weights. Raises TrainingError when it is not this lattice."""
        if not torch.equal(codebook_KD, self.codebook_KD):
            raise TrainingError(
                "tokenizer.train.init_from: its codebook is no fsq lattice; set tokenizer.train.model.quantizer to "
                "'kmeans' (fitted once, then fixed) or 'vq' (learned)"
            )

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """fp32 (B, D, ...) -> (quantized with gradient (B, D, ...), codes int64 (B, ...))."""
        half = (self.levels - 1) / 2
        digits = torch.ceil(z / FSQ_SPACING + half - 0.5).clamp(0, self.levels - 1)
        codes = (digits.long().movedim(1, -1) * self._places_D).sum(-1)
        return straight_through(z, (digits - half) * FSQ_SPACING), codes


def spread_loss(z: Tensor, levels: int) -> Tensor:
    """How far the covariance of latents (B, D, ...) is from that of codes drawn evenly from the lattice; 0 when equal.

    Latents follow brightness in every dimension when nothing keeps them apart: correlations of 0.5 to 0.7 cost 3 of 12
    bits. Evenness and independence to the second order are VICReg's terms (Bardes et al. 2022), without its hinge.
    """
    z_DN = z.movedim(1, 0).flatten(1)
    z_DN = z_DN - z_DN.mean(1, keepdim=True)
    even = (levels**2 - 1) / 12 * FSQ_SPACING**2
    covariance = z_DN @ z_DN.T / (z_DN.shape[1] * even)
    return (covariance - torch.eye(len(z_DN), device=z.device)).square().mean()


class CodebookQuantizer(nn.Module):
    """The nearest code of a codebook that stays as it was given."""

    def __init__(self, codebook_size: int, dim: int) -> None:
        super().__init__()
        self.codebook_KD = nn.Buffer(torch.zeros(codebook_size, dim))

    def take(self, codebook_KD: Tensor) -> None:
        """Go on with this codebook."""
        self.codebook_KD.copy_(codebook_KD)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """fp32 (B, D, ...) -> (quantized with gradient (B, D, ...), codes int64 (B, ...))."""
        z_last = z.movedim(1, -1)
        norms = (self.codebook_KD**2).sum(1)
        codes = nearest_codes(z_last.detach().reshape(-1, z_last.shape[-1]), self.codebook_KD, norms)
        codes = codes.view(z_last.shape[:-1])
        return straight_through(z, self.codebook_KD[codes].movedim(-1, 1)), codes


class VqQuantizer(CodebookQuantizer):
    """A learned codebook, moved to the mean of its vectors (decay 0.99); codes idle for 100 steps restart from data."""

    def __init__(self, codebook_size: int, dim: int) -> None:
        super().__init__(codebook_size, dim)
        self._count_K = nn.Buffer(torch.zeros(codebook_size))
        self._sum_KD = nn.Buffer(torch.zeros(codebook_size, dim))
        self._idle_K = nn.Buffer(torch.full((codebook_size,), _VQ_DEAD_AFTER_STEPS))

    def take(self, codebook_KD: Tensor) -> None:
        """Go on with the codebook of given weights, each code as if the last step had used it once."""
        super().take(codebook_KD)
        self._count_K.fill_(1 - _VQ_DECAY)
        self._sum_KD.copy_(codebook_KD * (1 - _VQ_DECAY))
        self._idle_K.zero_()

    @torch.no_grad()
    def update(self, z: Tensor, codes: Tensor, generator: torch.Generator) -> None:
        """Move the codebook towards the vectors of one step, and restart what has been idle too long."""
        z_ND, codes_N = z.detach().movedim(1, -1).reshape(-1, z.shape[1]), codes.flatten()
        count = torch.bincount(codes_N, minlength=len(self.codebook_KD)).to(z.dtype)
        self._count_K.lerp_(count, 1 - _VQ_DECAY)
        self._sum_KD.lerp_(torch.zeros_like(self._sum_KD).index_add_(0, codes_N, z_ND), 1 - _VQ_DECAY)
        self._idle_K.add_(1).masked_fill_(count > 0, 0)
        alive = self._count_K > 1e-6
        self.codebook_KD[alive] = self._sum_KD[alive] / self._count_K[alive, None]
        dead = (self._idle_K > _VQ_DEAD_AFTER_STEPS).nonzero().flatten()[: len(z_ND)]
        chosen = z_ND[torch.randperm(len(z_ND), generator=generator)[: len(dead)].to(z.device)]
        self.codebook_KD[dead] = chosen
        self._count_K[dead] = 1 - _VQ_DECAY
        self._sum_KD[dead] = chosen * (1 - _VQ_DECAY)
        self._idle_K[dead] = 0


class PatchDiscriminator(nn.Module):
    """Pixels (N, 3, H, W) -> one logit for each overlapping patch of 22 px: high where it looks real."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 4, padding=1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, 1, H / 4 - 1, W / 4 - 1)."""
        return self.layers(pixels)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator, from its logits on real pixels and on (detached) reconstructions."""
    return 0.5 * (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """Hinge loss of the decoder, from the discriminator's logits on its reconstructions."""
    return -fake.mean()
