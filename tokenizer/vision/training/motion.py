"""Motion for a tokenizer of stills: new dimensions and new codes for what moves, learned without decoding a pixel.

The temporal layers of Emu3's tokenizer hand four frames through as their mean: trained on pixels they stay there, and
four frames of a fast object come back alike. Here the trunks and the first dimensions of the latents stay as given, so
stills keep their codes. The temporal layers learn, through new dimensions, to give each frame of a clip what the given
weights give for that frame as a still; the trunks' work is done once, forward. New codes are then fitted to latents
that move, far from where stills lie in the new dimensions.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Emu3VQVAE

from tokenmill.storage.errors import TrainingError
from tokenmill.tokenizer.vision import emu3, weights
from tokenmill.tokenizer.vision.nearest import nearest_codes
from tokenmill.tokenizer.vision.training.codebook import fit_codebook
from tokenmill.tokenizer.vision.training.config import VisionTrainConfig
from tokenmill.tokenizer.vision.training.parallel import Workers
from tokenmill.tokenizer.vision.training.trainee import LATENTS_A_CODE, TEMPORAL_FACTOR, Training, learning_rate

_STILL = 10.0  # weight of the new dimensions of stills, which should be zero
_STILLS_WITHIN = 0.999  # of the latents of stills no code of motion can be the nearest to
_MOST_BATCHES = 2000


class MotionTraining(Training):
    """Training of `loss.motion_only`: other losses and other codes, all else as ever."""

    def __init__(
        self, config: VisionTrainConfig, device: str, compile_trunks: bool, workers: Workers | None = None
    ) -> None:
        super().__init__(config, device, compile_trunks, workers)
        folder = weights.folder_of(str(config.init_from))
        self._given = Emu3VQVAE.from_pretrained(folder, dtype=torch.float32).requires_grad_(False).eval().to(device)
        self._num_dims = self._given.config.embed_dim
        self._num_codes = self._given.config.codebook_size
        if config.model.embed_dim <= self._num_dims or config.model.codebook_size <= self._num_codes:
            raise TrainingError(
                f"motion_only gives motion new dimensions and new codes: {config.init_from!r} has embed_dim "
                f"{self._num_dims} and codebook_size {self._num_codes}; set tokenizer.train.model to more of both"
            )
        with torch.no_grad():  # the scale of errors: how much the codes differ, each alone
            codes_KD = self._given.quantize.embedding.weight[:, :, None, None, None]
            self._scales = [half.var() for half in emu3.decode_time(self._given, codes_KD)]

    @torch.no_grad()
    def fit_codebook(self, batches: Iterator[Tensor]) -> None:
        """Keep the given codes, and fit the new ones to latents that move.

        Raises TrainingError when fewer moving latents differ than there are new codes, or the batches lack a kind.
        """
        num_new = self.config.model.codebook_size - self._num_codes
        stills: list[Tensor] = []
        latents: list[Tensor] = []
        patches: list[Tensor] = []
        for _ in range(_MOST_BATCHES):
            pixels = next(batches)
            z_ND, ids_N = self._latents_of_all(pixels)
            if pixels.shape[1] == 1:
                stills.append(self._reach(z_ND))
                continue
            latents.append(z_ND)
            patches.append(ids_N)
            if stills and sum(map(len, latents)) >= LATENTS_A_CODE * num_new:
                break
        if not stills or not latents:
            raise TrainingError(
                f"{_MOST_BATCHES:,} batches held no {'clip' if stills else 'image'}; set tokenizer.train.video_share "
                "nearer to 0.5"
            )
        reach = float(np.quantile(torch.cat(stills).cpu().numpy(), _STILLS_WITHIN))
        z_ND, ids_N = torch.cat(latents), torch.cat(patches)
        is_moving = self._moves(z_ND) > reach
        num_moving = int(is_moving.sum())
        if num_moving < num_new:
            raise TrainingError(
                f"{num_moving:,} of {len(z_ND):,} latents of clips move more than stills do, for {num_new:,} codes; "
                "give clips that move, a later codes_from_step or a smaller codebook_size"
            )
        generator = torch.Generator().manual_seed(self.config.seed)
        codebook = fit_codebook(z_ND[is_moving], ids_N[is_moving], num_new, generator)
        new = codebook[:, self._num_dims :]  # a mean of several directions may lie too near to stills
        new.mul_((reach / new.norm(dim=1, keepdim=True).clamp(min=1e-6)).clamp(min=1))
        self.workers.average([codebook])  # machines may differ in the last bit
        self.trainee.quantizer.codebook_KD[self._num_codes :] = codebook

    def step(self, pixels: Tensor, step: int) -> dict[str, Any]:
        """One update from this worker's part (B, T, 3, H, W), in -1..1, of the step's batch.

        Figures are those of Training, but PSNR is of the first medium: the step itself decodes none.
        """
        model, with_codes = self.trainee.vq, step >= self.config.loss.codes_from_step
        self.optimizers[0].param_groups[0]["lr"] = learning_rate(self.config, step)
        num_frames = pixels.shape[1]
        with torch.no_grad():
            latent = self.trainee.frames(pixels)
            wanted = self._as_stills(latent)
        z = emu3.encode_time(model, latent.expand(-1, -1, TEMPORAL_FACTOR, -1, -1))
        quantized, codes = self.trainee.quantizer(z)
        decoded = emu3.decode_time(model, quantized if with_codes else z)
        made = [half[:, :, :num_frames] for half in decoded]
        loss = z.new_zeros(())
        for one, other, scale in zip(made, wanted, self._scales, strict=True):
            loss = loss + (one[:, : self._num_dims] - other).square().mean() / scale
        if with_codes:
            loss = loss + self.config.loss.commitment * (z - quantized.detach()).square().mean()
        if num_frames == 1:
            loss = loss + _STILL * z[:, self._num_dims :].square().mean()
        grad_norm = self._update(loss)
        with torch.no_grad():
            mse = (self.trainee.pixels([half[:1] for half in made]) - pixels[:1]).square().mean()
        return self._taken(step, loss, mse, codes, grad_norm)

    def _as_stills(self, latent_BCTHW: Tensor) -> list[Tensor]:
        """(hidden, guide) that the given weights make of each frame alone, as (B, C, T, h, w)."""
        frames = latent_BCTHW[:, : self._num_dims].transpose(1, 2)
        alone = frames.flatten(0, 1).unsqueeze(2).expand(-1, -1, TEMPORAL_FACTOR, -1, -1)
        decoded = emu3.decode_time(self._given, emu3.encode_time(self._given, alone))
        return [half[:, :, 0].unflatten(0, frames.shape[:2]).transpose(1, 2) for half in decoded]

    def _reach(self, z_ND: Tensor) -> Tensor:
        """How far in the new dimensions a code must be, (N,), so that it can never be the nearest to these stills."""
        codebook = self.trainee.quantizer.codebook_KD[: self._num_codes]
        codes = codebook[nearest_codes(z_ND, codebook, (codebook**2).sum(1))]
        return self._moves(z_ND) + (z_ND - codes).norm(dim=1)

    def _moves(self, z_ND: Tensor) -> Tensor:
        """How far each latent is from zero in the new dimensions, (N,)."""
        return z_ND[:, self._num_dims :].norm(dim=1)
