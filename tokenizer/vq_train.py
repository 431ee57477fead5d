"""Frames in memory -> a small trained Emu3VQVAE, saved so that plain `Emu3VQVAE.from_pretrained` loads it.

No training code of Emu3's tokenizer was ever released. This one keeps its architecture and the part of its losses that
needs no downloaded weights (L2 + 0.1 L1 + commitment, hinge PatchGAN on request; no perceptual loss), and trains the
exact path that VisionTokenizer runs: trunk once per still, groups of four frames. FSQ by default (tokenizer/vq_losses).
The temporal BatchNorms stay in eval mode with identity statistics, so training and use do not differ.

Everything of a step is a function of (config, data, step): a resumed run repeats the uninterrupted one exactly.
"""

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from tokenizer import vq
from tokenizer.identity import Config, fingerprint
from tokenizer.metrics import codebook_use
from tokenizer.vq_batches import clip_batch, image_batch
from tokenizer.vq_losses import (
    FsqQuantizer,
    PatchDiscriminator,
    VqQuantizer,
    discriminator_loss,
    fsq_levels,
    generator_loss,
)
from tokenizer.vq_pictures import draw_curve, draw_reconstructions
from tokenizer.vq_start import start

TEMPORAL_FACTOR = 4
_WARM_UP_STEPS = 100
_LAST_LR = 1e-3  # of the peak
_CLIP_NORM = 1.0


class VqModelConfig(Config):
    """The architecture: Emu3's own is 256, [1, 2, 2, 4], 2 blocks, 4 dimensions, 32,768 codes (271 M parameters)."""

    base_channels: int = Field(32, description="Small blurs, large is slow; the norms need 32s.", gt=0, multiple_of=32)
    channel_multiplier: list[int] = Field(
        [1, 1, 2, 4], description="Each further entry halves the grid once more; small entries blur.", min_length=2
    )
    num_res_blocks: int = Field(1, description="Few blur, many are slow.", gt=0)
    embed_dim: int = Field(4, description="Small blurs; large leaves codes of a learned codebook unused.", gt=0)
    codebook_size: int = Field(4096, description="Small blurs; large makes codes harder to predict.", gt=1, le=65536)
    quantizer: Literal["fsq", "vq"] = Field("fsq", description="fsq cannot collapse; vq reconstructs 0.2 dB better.")

    @model_validator(mode="after")
    def _lattice_exists(self) -> "VqModelConfig":
        if self.quantizer == "fsq":
            fsq_levels(self.codebook_size, self.embed_dim)
        return self


class VqLossConfig(Config):
    """Weights of the losses; pixels count in -1..1."""

    mse: float = Field(1.0, description="Small forgives single large errors; only large blurs.", ge=0)
    l1: float = Field(0.1, description="Small blurs edges; large forgives single large errors.", ge=0)
    commitment: float = Field(0.25, description="Small lets latents drift off their codes; large blurs.", ge=0)
    gan: float = Field(0.0, description="Small blurs, large invents texture; 0 trains no discriminator.", ge=0)
    gan_from_step: int = Field(20_000, description="Small destabilises the start; peers wait for 20,000.", ge=0)


class VqTrainConfig(Config):
    """One training run of a vision tokenizer."""

    model: VqModelConfig = VqModelConfig()
    loss: VqLossConfig = VqLossConfig()
    steps: int = Field(4000, description="Few blur; 1,500 to 5,000 gained 0.7 dB on photos.", gt=0)
    batch: int = Field(16, description="Frames a step. Small is noisy, large is slow; clips take four each.", ge=4)
    crop_px: int = Field(64, description="Small hides the scene, large is slow; must fit the spatial factor.", gt=0)
    video_share: float = Field(
        0.25, description="Share of steps on clips. Small blurs motion, large stills.", ge=0, le=1
    )
    lr: float = Field(1e-3, description="Small trains slowly, large diverges; falls to a thousandth by cosine.", gt=0)
    ema: float = Field(0.999, description="Small exports a noisy step, large lags behind short runs.", ge=0, lt=1)
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="Of the 2-D trunk; fp32 is slower. The temporal part and the codes are always fp32."
    )
    checkpoint_steps: int = Field(500, description="Small writes often, large loses work at a crash.", gt=0)
    seed: int = Field(0, description="Of weights, crops and flips.", ge=0)

    @model_validator(mode="after")
    def _crop_fits(self) -> "VqTrainConfig":
        factor = 2 ** (len(self.model.channel_multiplier) - 1)
        if self.crop_px % factor:
            raise ValueError(f"crop_px = {self.crop_px} is no multiple of the spatial factor {factor}; change one")
        return self


class _Trainee(nn.Module):
    """The model in training: the paths of VisionTokenizer with a quantizer that passes gradients."""

    def __init__(self, config: VqTrainConfig, compile_trunks: bool) -> None:
        super().__init__()
        self.vq = new_model(config.model)
        kind = FsqQuantizer if config.model.quantizer == "fsq" else VqQuantizer
        self.quantizer = kind(config.model.codebook_size, config.model.embed_dim)
        self._low = config.precision == "bf16"
        self._encode, self._decode = vq.encode_trunk, vq.decode_trunk
        if compile_trunks:
            self._encode, self._decode = torch.compile(vq.encode_trunk), torch.compile(vq.decode_trunk)

    def forward(self, pixels_BTCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, T, 3, H, W), T 1 or 4 -> reconstruction of that shape, latents z, their quantized values, codes."""
        num_frames = pixels_BTCHW.shape[1]
        with self._autocast(pixels_BTCHW.device):
            latent = self._encode(self.vq, pixels_BTCHW.flatten(0, 1))
        latent = latent.float().unflatten(0, (-1, num_frames)).transpose(1, 2)
        z = vq.encode_time(self.vq, latent.expand(-1, -1, TEMPORAL_FACTOR, -1, -1))
        quantized, codes = self.quantizer(z)
        halves = vq.decode_time(self.vq, quantized)
        hidden, guide = (half[:, :, :num_frames].transpose(1, 2).flatten(0, 1) for half in halves)
        with self._autocast(pixels_BTCHW.device):
            pixels = self._decode(self.vq, hidden, guide)
        return pixels.float().unflatten(0, (-1, num_frames)), z, quantized, codes

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self._low)


def new_model(config: VqModelConfig) -> Emu3VQVAE:
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


def train(
    config: VqTrainConfig,
    images: Sequence[np.ndarray],
    clips: Sequence[np.ndarray],
    out: Path,
    *,
    device: str = "cpu",
    compile_trunks: bool = False,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Train on `images`, uint8 (H, W, 3), and `clips`, uint8 (T, H, W, 3), T >= 4; return the folder of the model.

    All pixels are held in memory by the caller (3 bytes each: 1,000 images of 256 px are 0.2 GB); to see one more often,
    list it more often, which costs nothing. Smaller ones than a crop are scaled up; scale larger ones down beforehand
    to the sizes to be tokenized. `out` gets model/, checkpoint.pt, log.jsonl (one record a step, also given to
    `on_step`), loss.png and reconstructions.png. If it holds a checkpoint of this config, the run goes on from there.
    `compile_trunks` pays two minutes of compilation for steps 1.6 times as fast on a CPU.

    Raises ValueError for empty data, clips of fewer than four frames, or a folder with another config's checkpoint.
    """
    kinds = _kinds(config, images, clips)
    torch.manual_seed(config.seed)
    trainee = _Trainee(config, compile_trunks).to(device)
    critic = PatchDiscriminator().to(device) if config.loss.gan else None
    weights = [parameter for parameter in trainee.parameters() if parameter.requires_grad]
    optimizers = [torch.optim.AdamW(weights, lr=config.lr, betas=(0.9, 0.95))]
    if critic:
        optimizers.append(torch.optim.AdamW(critic.parameters(), lr=config.lr, betas=(0.9, 0.95)))
    averages = [weight.detach().clone() for weight in weights]
    parts: dict[str, Any] = {"trainee": trainee, "critic": critic, "optimizers": optimizers, "averages": averages}
    out.mkdir(parents=True, exist_ok=True)
    first = _resume(out, config, parts)
    with (out / "log.jsonl").open("a") as log:
        for step in range(first, config.steps):
            rng = np.random.default_rng([config.seed, step])
            kind = kinds[int(rng.random() < config.video_share)]
            if kind == "images":
                frames = image_batch(images, config.batch, config.crop_px, rng)[:, None]
            else:
                frames = clip_batch(clips, config.batch // TEMPORAL_FACTOR, config.crop_px, TEMPORAL_FACTOR, rng)
            pixels = vq.to_pixels(torch.from_numpy(frames).to(device))
            record = {"step": step, "kind": kind} | _step(config, trainee, critic, optimizers, weights, pixels, step)
            decay = min(config.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(averages, weights, 1 - decay)
            log.write(json.dumps(record) + "\n")
            log.flush()
            if (step + 1) % config.checkpoint_steps == 0 or step + 1 == config.steps:
                _checkpoint(out, config, parts, step + 1)
            if on_step:
                on_step(record)
    folder = _export(out, trainee, weights, averages)
    draw_curve(out / "log.jsonl", out / "loss.png")
    draw_reconstructions(
        vq.VisionTokenizer.load(str(folder)), images, clips, config.crop_px, out / "reconstructions.png"
    )
    return folder


def _kinds(config: VqTrainConfig, images: Sequence[np.ndarray], clips: Sequence[np.ndarray]) -> tuple[str, str]:
    """What a step is made of when it is (no video, video): the other one where one is missing."""
    if not images and not clips:
        raise ValueError("no images and no clips to train on; give at least one list")
    short = [len(clip) for clip in clips if len(clip) < TEMPORAL_FACTOR]
    if short:
        raise ValueError(f"a clip has {min(short)} frames, a group is {TEMPORAL_FACTOR}; leave shorter clips out")
    return ("images" if images else "clips"), ("clips" if clips else "images")


def _step(
    config: VqTrainConfig,
    trainee: _Trainee,
    critic: PatchDiscriminator | None,
    optimizers: list[torch.optim.Optimizer],
    weights: list[nn.Parameter],
    pixels: Tensor,
    step: int,
) -> dict[str, Any]:
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = learning_rate(config, step)
    made, z, quantized, codes = trainee(pixels)
    mse = (made - pixels).square().mean()
    weigh = config.loss
    loss = weigh.mse * mse + weigh.l1 * (made - pixels).abs().mean()
    loss = loss + weigh.commitment * (z - quantized.detach()).square().mean()
    use_critic = critic is not None and step >= weigh.gan_from_step
    if critic is not None and use_critic:
        loss = loss + weigh.gan * generator_loss(critic(made.flatten(0, 1)))
    optimizers[0].zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(weights, _CLIP_NORM)
    optimizers[0].step()
    if isinstance(trainee.quantizer, VqQuantizer):
        trainee.quantizer.update(z, codes, torch.Generator().manual_seed(config.seed * 1_000_003 + step))
    if critic is not None and use_critic:
        optimizers[1].zero_grad()
        real, fake = critic(pixels.flatten(0, 1)), critic(made.detach().flatten(0, 1))
        discriminator_loss(real, fake).backward()
        nn.utils.clip_grad_norm_(critic.parameters(), _CLIP_NORM)
        optimizers[1].step()
    use = codebook_use(codes.cpu().numpy(), config.model.codebook_size)
    return {
        "loss": loss.item(),
        "psnr": 10 * math.log10(4 / max(mse.item(), 1e-12)),
        "codes_used": use["codes_used"],
        "perplexity": use["perplexity"],
        "grad_norm": norm.item(),
    }


def learning_rate(config: VqTrainConfig, step: int) -> float:
    """Linear warm-up over 100 steps (a tenth of a short run), then a cosine to a thousandth."""
    warm_up = min(_WARM_UP_STEPS, config.steps // 10)
    if step < warm_up:
        return config.lr * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, config.steps - warm_up)
    return config.lr * (_LAST_LR + (1 - _LAST_LR) * 0.5 * (1 + math.cos(math.pi * progress)))


def _checkpoint(out: Path, config: VqTrainConfig, parts: dict[str, Any], step: int) -> None:
    state = {
        "step": step,
        "config": fingerprint(config),
        "trainee": parts["trainee"].state_dict(),
        "critic": parts["critic"].state_dict() if parts["critic"] else {},
        "optimizers": [optimizer.state_dict() for optimizer in parts["optimizers"]],
        "averages": parts["averages"],
    }
    temporary = out / "checkpoint.pt.partial"
    torch.save(state, temporary)
    os.replace(temporary, out / "checkpoint.pt")


def _resume(out: Path, config: VqTrainConfig, parts: dict[str, Any]) -> int:
    """Load the checkpoint in `out`, if any, cut the log to it, and return the step to go on from."""
    path, log = out / "checkpoint.pt", out / "log.jsonl"
    step = 0
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["config"] != fingerprint(config):
            raise ValueError(f"{path}: of another config; give another folder or delete this one")
        step = state["step"]
        parts["trainee"].load_state_dict(state["trainee"])
        if parts["critic"]:
            parts["critic"].load_state_dict(state["critic"])
        for optimizer, saved in zip(parts["optimizers"], state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for average, saved in zip(parts["averages"], state["averages"], strict=True):
            average.copy_(saved)
    if log.exists():
        lines = log.read_text().splitlines(keepends=True)
        log.write_text("".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step))
    return step


def _export(out: Path, trainee: _Trainee, weights: list[nn.Parameter], averages: list[Tensor]) -> Path:
    folder = out / "model"
    with torch.no_grad():
        for weight, average in zip(weights, averages, strict=True):
            weight.copy_(average)
        trainee.vq.quantize.embedding.weight.copy_(trainee.quantizer.codebook_KD)
    trainee.vq.save_pretrained(folder)
    return folder
