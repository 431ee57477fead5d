"""A model in training: the exact path of VisionTokenizer with gradients, its losses, one step at a time."""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from tokenmill.storage.errors import TrainingError
from tokenmill.tokenizer.vision import emu3, weights
from tokenmill.tokenizer.vision.evaluation.metrics import codebook_use
from tokenmill.tokenizer.vision.evaluation.perceptual import Lpips, structural_dissimilarity
from tokenmill.tokenizer.vision.training import losses
from tokenmill.tokenizer.vision.training.codebook import fit_codebook, patch_ids
from tokenmill.tokenizer.vision.training.config import VisionModelConfig, VisionTrainConfig
from tokenmill.tokenizer.vision.training.parallel import Workers
from tokenmill.tokenizer.vision.training.start import keep_stills, start, widened
from tokenmill.tokenizer.vision.vision_tokenizer import load_model

TEMPORAL_FACTOR = 4
_WARM_UP_STEPS = 100
_LAST_LR = 1e-3  # of the peak
_CLIP_NORM = 1.0
_WEIGHT_DECAY = 0.01
LATENTS_A_CODE = 64  # for a codebook to be fitted
_WELL_MADE = 0.1  # of the mean error of a batch: what is made better weighs no more in the context loss
_QUANTIZERS: dict[str, type[losses.FsqQuantizer | losses.CodebookQuantizer]] = {
    "fsq": losses.FsqQuantizer,
    "vq": losses.VqQuantizer,
    "kmeans": losses.CodebookQuantizer,
}


class Trainee(nn.Module):
    """Emu3VQVAE with a quantizer that passes gradients: what VisionTokenizer runs, from pixels to pixels."""

    def __init__(self, config: VisionTrainConfig, compile_trunks: bool) -> None:
        super().__init__()
        if config.loss.decoder_only:
            _check_codes_stay(config)
        self.vq = new_model(config.model) if config.init_from is None else given_model(config.model, config.init_from)
        kind = _QUANTIZERS[config.model.quantizer]
        self.quantizer = kind(config.model.codebook_size, config.model.embed_dim)
        if config.init_from is not None:
            self.quantizer.take(self.vq.quantize.embedding.weight.detach())
        self._is_decoder_only = config.loss.decoder_only
        if config.loss.decoder_only:
            for part in (self.vq.encoder, self.vq.quant_conv):
                part.requires_grad_(False)
        if config.loss.motion_only:
            keep_stills(self.vq, weights.config_of(str(config.init_from))["embed_dim"])
        self._is_low_precision = config.dtype == "bfloat16"
        self._encode = torch.compile(emu3.encode_trunk, dynamic=False) if compile_trunks else emu3.encode_trunk
        self._decode = torch.compile(emu3.decode_trunk, dynamic=False) if compile_trunks else emu3.decode_trunk

    def forward(self, pixels_BTCHW: Tensor, with_codes: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, T, 3, H, W) in -1..1, T 1 or 4 -> its reconstruction, latents z, their quantized values, codes.

        Without codes the reconstruction is that of the latents, which stand for their quantized values.
        """
        num_frames = pixels_BTCHW.shape[1]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._is_decoder_only):
            z = self.latents(pixels_BTCHW)
        quantized, codes = self.quantizer(z)
        quantized = quantized if with_codes else z
        halves = emu3.decode_time(self.vq, quantized)
        return self.pixels([half[:, :, :num_frames] for half in halves]), z, quantized, codes

    def latents(self, pixels_BTCHW: Tensor) -> Tensor:
        """The latents (B, D, 1, h, w) that are quantized, in float32."""
        return emu3.encode_time(self.vq, self.frames(pixels_BTCHW).expand(-1, -1, TEMPORAL_FACTOR, -1, -1))

    def frames(self, pixels_BTCHW: Tensor) -> Tensor:
        """The latents (B, D, T, h, w) of single frames, in float32."""
        with self._autocast(pixels_BTCHW.device):
            latent = self._encode(self.vq, pixels_BTCHW.flatten(0, 1))
        return latent.float().unflatten(0, (-1, pixels_BTCHW.shape[1])).transpose(1, 2)

    def pixels(self, halves_BDTHW: Sequence[Tensor]) -> Tensor:
        """(hidden, guide) of the temporal decoder -> pixels (B, T, 3, H, W), in float32."""
        num_frames = halves_BDTHW[0].shape[2]
        hidden, guide = (half.transpose(1, 2).flatten(0, 1) for half in halves_BDTHW)
        with self._autocast(hidden.device):
            pixels = self._decode(self.vq, hidden, guide)
        return pixels.float().unflatten(0, (-1, num_frames))

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self._is_low_precision)


class Training:
    """Everything that changes from step to step, and how one step changes it."""

    def __init__(
        self, config: VisionTrainConfig, device: str, compile_trunks: bool, workers: Workers | None = None
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device = config, device
        self.workers = workers or Workers()
        self.trainee = Trainee(config, compile_trunks).to(device)
        self.lpips = Lpips(config.loss.lpips, device) if config.loss.lpips else None
        self.critic = losses.PatchDiscriminator().to(device) if config.loss.gan else None
        self.weights: list[Tensor] = [weight for weight in self.trainee.parameters() if weight.requires_grad]
        self.averages = [weight.detach().clone() for weight in self.weights]
        decay = 0.0 if config.loss.motion_only else _WEIGHT_DECAY  # weights that stay must not shrink
        self.optimizers = [torch.optim.AdamW(self.weights, lr=config.lr, betas=(0.9, 0.95), weight_decay=decay)]
        if self.critic:
            self.optimizers.append(torch.optim.AdamW(self.critic.parameters(), lr=config.lr, betas=(0.9, 0.95)))

    @torch.no_grad()
    def fit_codebook(self, batches: Iterator[Tensor]) -> None:
        """Fit the codebook to the latents of as many batches (B, T, 3, H, W), in -1..1, as it takes.

        Raises TrainingError when fewer latents differ than there are codes.
        """
        size = self.config.model.codebook_size
        latents: list[Tensor] = []
        patches: list[Tensor] = []
        while sum(map(len, latents)) < LATENTS_A_CODE * size:
            z_ND, ids_N = self._latents_of_all(next(batches))
            latents.append(z_ND)
            patches.append(ids_N)
        generator = torch.Generator().manual_seed(self.config.seed)
        codebook = fit_codebook(torch.cat(latents), torch.cat(patches), size, generator)
        self.workers.average([codebook])  # machines may differ in the last bit
        self.trainee.quantizer.codebook_KD.copy_(codebook)

    def step(self, pixels: Tensor, step: int) -> dict[str, Any]:
        """One update from this worker's part (B, T, 3, H, W), in -1..1, of the step's batch.

        Returns loss, PSNR in dB and the use of codes by the whole batch.
        """
        weigh = self.config.loss
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate(self.config, step)
        made, z, quantized, codes = self.trainee(pixels, step >= self.config.loss.codes_from_step)
        mse = (made - pixels).square().mean()
        loss = weigh.mse * mse + weigh.l1 * (made - pixels).abs().mean()
        if weigh.perceptual:
            loss = loss + weigh.perceptual * self._perceptual_loss(made.flatten(0, 1), pixels.flatten(0, 1))
        if not self.config.loss.decoder_only:
            loss = loss + weigh.commitment * (z - quantized.detach()).square().mean()
            if weigh.context:
                loss = loss + weigh.context * self._context_loss(pixels, made, z, step)
            if weigh.spread and isinstance(self.trainee.quantizer, losses.FsqQuantizer):
                loss = loss + weigh.spread * losses.spread_loss(z, self.trainee.quantizer.levels)
        critic = self.critic if step >= weigh.gan_from_step else None
        if critic:
            loss = loss + weigh.gan * losses.generator_loss(critic(made.flatten(0, 1)))
        grad_norm = self._update(loss)
        if isinstance(self.trainee.quantizer, losses.VqQuantizer) and not self.config.loss.decoder_only:
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
            self.trainee.quantizer.update(self.workers.gather(z.detach()), self.workers.gather(codes), generator)
        if critic:
            self.optimizers[1].zero_grad()
            losses.discriminator_loss(critic(pixels.flatten(0, 1)), critic(made.detach().flatten(0, 1))).backward()
            self.workers.average([weight.grad for weight in critic.parameters() if weight.grad is not None])
            nn.utils.clip_grad_norm_(critic.parameters(), _CLIP_NORM)
            self.optimizers[1].step()
        return self._taken(step, loss, mse, codes, grad_norm)

    def _latents_of_all(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (N, D) and ids of the patches (N,) of a batch, all workers' parts."""
        z = self.trainee.latents(pixels)
        z_ND = self.workers.gather(z.movedim(1, -1).flatten(0, -2))
        return z_ND, self.workers.gather(patch_ids(pixels, *z.shape[-2:]))

    def _update(self, loss: Tensor) -> Tensor:
        """One step of the model's weights; the norm of their gradients."""
        self.optimizers[0].zero_grad()
        loss.backward()
        self.workers.average([weight.grad for weight in self.weights if weight.grad is not None])
        grad_norm = nn.utils.clip_grad_norm_(self.weights, _CLIP_NORM)
        self.optimizers[0].step()
        return grad_norm

    def _taken(self, step: int, loss: Tensor, mse: Tensor, codes: Tensor, grad_norm: Tensor) -> dict[str, Any]:
        """Average the weights of a step that was taken; its figures, of all workers."""
        decay = min(self.config.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, [weight.detach() for weight in self.weights], 1 - decay)
        figures = torch.stack([loss.detach(), mse.detach()])
        self.workers.average([figures])
        use = codebook_use(self.workers.gather(codes).cpu().numpy(), self.config.model.codebook_size)
        return {
            "loss": figures[0].item(),
            "psnr": 10 * math.log10(4 / max(figures[1].item(), 1e-12)),
            "codes_used": use["codes_used"],
            "perplexity": use["perplexity"],
            "grad_norm": grad_norm.item(),
        }

    def _perceptual_loss(self, made: Tensor, pixels: Tensor) -> Tensor:
        return self.lpips.distance(made, pixels).mean() if self.lpips else structural_dissimilarity(made, pixels)

    def _context_loss(self, pixels: Tensor, made: Tensor, z: Tensor, step: int) -> Tensor:
        """How far latents move when a rectangle of each picture is put into the next: what surrounds it is exchanged.

        The trunk's norms and attention see the whole picture: without this loss, one drawn patch was given one of about
        six codes (1.8 nats), depending on the rest of its scene. Places that are made well weigh up to ten times as
        much as the others: their codes could be predicted, those of rich texture look like noise in any case.
        """
        rows, columns = z.shape[-2:]
        inside = torch.zeros(rows, columns, dtype=torch.bool, device=z.device)
        rng = np.random.default_rng([self.config.seed, step, 1])
        height, width = rng.integers(1, rows, endpoint=True), rng.integers(1, columns, endpoint=True)
        top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
        inside[top : top + height, left : left + width] = True
        factor = pixels.shape[-1] // columns
        inside_px = inside.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
        mixed = torch.where(inside_px, pixels, pixels.roll(1, 0))
        expected = torch.where(inside, z, z.roll(1, 0))
        errors = avg_pool2d((made - pixels).detach().square().mean((1, 2)), factor)[:, None, None]
        errors = torch.where(inside, errors, errors.roll(1, 0))
        shares = errors.mean() / (errors + _WELL_MADE * errors.mean())
        return (shares * (self.trainee.latents(mixed) - expected).square()).mean()

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, as tensors, numbers and containers of them."""
        return {
            "trainee": self.trainee.state_dict(),
            "critic": self.critic.state_dict() if self.critic else {},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "averages": self.averages,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave."""
        self.trainee.load_state_dict(state["trainee"])
        if self.critic:
            self.critic.load_state_dict(state["critic"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.copy_(saved)

    @torch.no_grad()
    def averaged_model(self) -> Emu3VQVAE:
        """The model to export, a copy: averaged weights, the quantizer's codebook."""
        model = copy.deepcopy(self.trainee.vq)
        wanted = [weight for weight in model.parameters() if weight.requires_grad]
        for weight, average in zip(wanted, self.averages, strict=True):
            weight.copy_(average)
        model.quantize.embedding.weight.copy_(self.trainee.quantizer.codebook_KD)
        return model


def new_model(config: VisionModelConfig) -> Emu3VQVAE:
    """An untrained Emu3VQVAE in eval mode."""
    return start(
        Emu3VQVAEConfig(
            codebook_size=config.codebook_size,
            embed_dim=config.embed_dim,
            latent_channels=config.embed_dim,
            temporal_downsample_factor=TEMPORAL_FACTOR,
            base_channels=config.base_channels,
            channel_multiplier=config.channel_multiplier,
            num_res_blocks=config.num_res_blocks,
            attn_resolutions=[len(config.channel_multiplier) - 1],
            hidden_size=config.base_channels * config.channel_multiplier[-1],
        )
    )


def given_model(config: VisionModelConfig, init_from: str) -> Emu3VQVAE:
    """The weights of `init_from`, to be trained further; widened where they have fewer codes or smaller ones.

    Raises TrainingError when they are not of this architecture.
    """
    model = load_model(weights.folder_of(init_from))
    if not isinstance(model, Emu3VQVAE):
        raise TrainingError(f"tokenizer.train.init_from = {init_from!r} codes no clips; give one that does")
    wanted = new_model(config)
    sizes = {name: min(getattr(model.config, name), getattr(config, name)) for name in ("embed_dim", "codebook_size")}
    shapes = [
        {name: weight.shape for name, weight in each.state_dict().items()}
        for each in (model, new_model(config.model_copy(update=sizes)))
    ]
    if shapes[0] != shapes[1]:
        raise TrainingError(
            f"tokenizer.train.init_from = {init_from!r} is not of the architecture of tokenizer.train.model; match them"
        )
    return widened(model, wanted)


def _check_codes_stay(config: VisionTrainConfig) -> None:
    given = weights.config_of(str(config.init_from))
    for name in ("embed_dim", "codebook_size"):
        if given[name] != getattr(config.model, name):
            raise TrainingError(
                f"decoder_only keeps the codes of {config.init_from!r}: set tokenizer.train.model.{name} to its "
                f"{given[name]}"
            )


def learning_rate(config: VisionTrainConfig, step: int) -> float:
    """Linear warm-up over 100 steps (a tenth of a short run), then a cosine to a thousandth."""
    warm_up = min(_WARM_UP_STEPS, config.steps // 10)
    if step < warm_up:
        return config.lr * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, config.steps - warm_up)
    return config.lr * (_LAST_LR + (1 - _LAST_LR) * 0.5 * (1 + math.cos(math.pi * progress)))
