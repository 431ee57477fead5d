"""The config of a vision tokenizer's training: its model, its losses, its run.

The defaults train 1.9 M parameters with 4,096 codes; a step takes about 0.4 s on one CPU core, compiled.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from tokenmill import storage
from tokenmill.storage.errors import TrainingError
from tokenmill.storage.identity import Config, fingerprint_of
from tokenmill.tokenizer.geometry import SSIM_WINDOW_PX

DONE = "done.json"  # written last: the folder holds a trained model


def fsq_levels(codebook_size: int, dim: int) -> int:
    """Levels of each dimension. Raises ValueError unless codebook_size is an even number to the power of `dim`."""
    levels = round(codebook_size ** (1 / dim))
    if levels**dim != codebook_size or levels % 2:
        raise ValueError(
            f"codebook_size = {codebook_size} is no even number to the power of embed_dim = {dim}; take 8 ** {dim} = "
            f"{8**dim}, or quantizer 'vq'"
        )
    return levels


class VisionModelConfig(Config):
    """The architecture: Emu3's own is 256, [1, 2, 2, 4], 2 blocks, 4 dimensions, 32,768 codes (271 M parameters)."""

    base_channels: int = Field(32, description="Small blurs, large is slow; the norms need 32s.", gt=0, multiple_of=32)
    channel_multiplier: list[int] = Field(
        [1, 1, 2, 3], description="Each further entry halves the grid once more; small entries blur.", min_length=2
    )
    num_res_blocks: int = Field(1, description="Few blur, many are slow.", gt=0)
    embed_dim: int = Field(4, description="Small blurs; large leaves codes of a learned codebook unused.", gt=0)
    codebook_size: int = Field(4096, description="Small blurs; large makes codes harder to predict.", gt=1, le=65536)
    quantizer: Literal["fsq", "vq", "kmeans"] = Field(
        "fsq",
        description="fsq cannot collapse; vq learns its codes, 0.2 dB better; kmeans fits them once to the latents of "
        "the weights in init_from: four times the codes of fsq in use.",
    )

    @model_validator(mode="after")
    def _lattice_exists(self) -> "VisionModelConfig":
        if self.quantizer == "fsq":
            fsq_levels(self.codebook_size, self.embed_dim)
        return self


class VisionLossConfig(Config):
    """Weights of the losses; pixels count in -1..1."""

    later_fields = frozenset({"motion_only", "codes_from_step"})

    mse: float = Field(1.0, description="Small forgives single large errors; only large blurs.", ge=0)
    l1: float = Field(0.1, description="Small blurs edges; large forgives single large errors.", ge=0)
    perceptual: float = Field(0.0, description="Small blurs texture and thin letters; large costs PSNR.", ge=0)
    lpips: Path | None = Field(
        None,
        description="AlexNet's weights as torchvision publishes them: the perceptual loss is LPIPS. Null: 1 - SSIM at "
        "three scales, which needs no weights.",
    )
    commitment: float = Field(0.1, description="Small lets latents drift off their codes; large blurs.", ge=0)
    context: float = Field(
        0.5,
        description="Small: what surrounds a patch changes its code, noise to a language model; large blurs.",
        ge=0,
    )
    spread: float = Field(
        0.0,
        description="Of fsq's latents over the lattice. Small: dimensions say the same, codes lie idle; large blurs.",
        ge=0,
    )
    decoder_only: bool = Field(
        False,
        description="True, for given weights: codes stay as they are, and shards with them, pixels get better; false "
        "trains both halves. The losses of codes do nothing then.",
    )
    motion_only: bool = Field(
        False,
        description="True, for given weights and a larger embed_dim and codebook_size: stills keep their codes and, "
        "nearly, their pixels; the new codes are fitted to motion, and the temporal layers alone learn, from stills. "
        "Of these losses commitment is used, nothing else.",
    )
    codes_from_step: int = Field(
        0,
        description="Of quantizer kmeans: the first step with codes, fitted then. 0 fits them to the weights given; "
        "new dimensions need steps without, to mean anything by then.",
        ge=0,
    )
    gan: float = Field(0.0, description="Small blurs, large invents texture; 0 trains no discriminator.", ge=0)
    gan_from_step: int = Field(20_000, description="Small destabilises the start; peers wait for 20,000.", ge=0)

    @model_validator(mode="after")
    def _weights_are_there(self) -> "VisionLossConfig":
        if self.lpips and not self.perceptual:
            raise ValueError("lpips is read by the perceptual loss alone; give loss.perceptual a weight")
        if self.lpips and not self.lpips.is_file():
            raise ValueError(f"lpips = {self.lpips}: no such file; give torchvision's alexnet-owt-7be5be79.pth")
        return self


class VisionTrainConfig(Config):
    """One training run of a vision tokenizer."""

    model: VisionModelConfig = VisionModelConfig()
    init_from: str | None = Field(
        None,
        description="Weights to start from: `builtin`, a folder or a hub name. With a smaller embed_dim they are "
        "widened: the new dimensions start unused.",
    )
    loss: VisionLossConfig = VisionLossConfig()
    steps: int = Field(4000, description="Few blur; 1,500 to 5,000 gained 0.7 dB on photos.", gt=0)
    batch: int = Field(
        16,
        description="Frames of a step with crops of the first side; clips take four each. Small is noisy, large slow.",
        ge=4,
    )
    crops_px: list[int] = Field(
        [64],
        description="Sides, multiples of the spatial factor: each step draws one, in fewer crops where it is larger. "
        "Only small ones: the norms and the attention, which see all of a picture, fail on large pictures.",
        min_length=1,
    )
    sides_px: list[int] | None = Field(
        None,
        description="Squares of these sides give the areas at which media are shown, aspect kept. Few sizes fit few "
        "resolutions, many take memory; null: the area of tokenize.frames.",
        min_length=1,
    )
    video_share: float = Field(
        0.2, description="Share of steps on clips. Small blurs motion, large stills.", ge=0, le=1
    )
    lr: float = Field(1e-3, description="Small trains slowly, large diverges; falls to a thousandth by cosine.", gt=0)
    ema: float = Field(0.999, description="Small exports a noisy step, large lags behind short runs.", ge=0, lt=1)
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Of the 2-D trunk; the temporal part and the codes are always float32. auto: bfloat16 where the "
        "device multiplies in it, else float32; a training begun elsewhere goes on as it was begun.",
    )
    seed: int = Field(0, description="Of weights, crops and flips.", ge=0)

    @model_validator(mode="after")
    def _crop_fits(self) -> "VisionTrainConfig":
        factor = 2 ** (len(self.model.channel_multiplier) - 1)
        if wrong := [side for side in self.crops_px if side <= 0 or side % factor]:
            raise ValueError(f"crops_px: {wrong[0]} is no multiple of the spatial factor {factor}; change one")
        if self.loss.perceptual and min(self.crops_px) < SSIM_WINDOW_PX:
            raise ValueError(f"loss.perceptual compares windows of {SSIM_WINDOW_PX} px; make crops_px larger")
        if self.model.quantizer == "kmeans" and self.init_from is None:
            raise ValueError("quantizer 'kmeans' fits codes to the latents of given weights; name them in init_from")
        if self.loss.motion_only and (self.model.quantizer != "kmeans" or self.loss.decoder_only or self.loss.gan):
            raise ValueError("motion_only fits codes to motion: take quantizer 'kmeans', no decoder_only, no gan")
        if self.loss.motion_only and self.video_share in (0, 1):
            raise ValueError("motion_only compares clips with images: set video_share between 0 and 1, such as 0.5")
        if self.loss.codes_from_step and (self.model.quantizer != "kmeans" or self.loss.decoder_only):
            raise ValueError("codes_from_step is when quantizer 'kmeans' fits its codes; leave it at 0")
        if self.loss.codes_from_step >= self.steps:
            raise ValueError(
                f"codes_from_step = {self.loss.codes_from_step} leaves no step with codes; give more steps"
            )
        if self.loss.decoder_only and self.init_from is None:
            raise ValueError("decoder_only keeps the codes of given weights; name them in init_from")
        if self.loss.spread and self.model.quantizer != "fsq":
            raise ValueError("loss.spread spreads latents over the lattice of quantizer 'fsq'; set it to 0 for others")
        return self

    def identities(self, data_id: str) -> dict[str, str]:
        """What a training of this config on such data is known by, for each dtype that it may have been begun with."""
        dtypes = ("float32", "bfloat16") if self.dtype == "auto" else (self.dtype,)
        return {dtype: fingerprint_of(self.model_copy(update={"dtype": dtype}), data_id) for dtype in dtypes}

    def is_trained(self, data_id: str, out: str) -> bool:
        """Whether the folder or s3:// prefix `out` holds the model of this config and data.

        Raises TrainingError when it holds that of others.
        """
        uri = storage.join(out, DONE)
        if not storage.exists(uri):
            return False
        if storage.read_json(uri, "identity")["identity"] not in self.identities(data_id).values():
            raise another(uri)
        return True


def another(uri: str) -> TrainingError:
    """A folder is taken."""
    return TrainingError(f"{uri}: of another config or of other media; give another folder or delete this one")
