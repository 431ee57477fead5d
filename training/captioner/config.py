"""The config of a captioner's training: its first weights, what it is asked, its run."""

from typing import Any, Literal

from pydantic import Field, model_validator

from tokenmill.storage.identity import Config
from tokenmill.training.config import LoraConfig, OptimizerConfig
from tokenmill.training.resources import WorkerResources


class ScratchConfig(Config):
    """A small model of the class `SmolVLMForConditionalGeneration`, or without pictures `LlamaForCausalLM`, and a
    tokenizer trained on prompts and captions.
    """

    image_px: int = Field(64, description="Longest side that it sees. Small loses detail, large is slow.", gt=0)
    patch_px: int = Field(8, description="Small is slow, large loses detail.", gt=0)
    merged_patches: int = Field(2, description="Patches a side that are one token. Few are slow, many blur.", gt=0)
    hidden_size: int = Field(128, description="Small cannot hold the data, large is slow.", gt=0, multiple_of=32)
    vision_layers: int = Field(2, description="Few cannot tell shapes, many are slow.", gt=0)
    text_layers: int = Field(3, description="Few cannot relate things, many are slow.", gt=0)
    vocab_size: int = Field(512, description="Small makes captions long, large leaves ids untrained.", ge=288)

    @model_validator(mode="after")
    def _patches_fit(self) -> "ScratchConfig":
        side = self.patch_px * self.merged_patches
        if self.image_px % side:
            raise ValueError(f"image_px {self.image_px} is no multiple of patch_px x merged_patches, {side}")
        return self


class AskConfig(Config):
    """What it is asked, of which pictures: as `caption.captioners` will ask it."""

    prompt: str = Field("dense", min_length=1, description="Another than it will be asked with writes worse captions.")
    video_prompt: str = Field("video", min_length=1, description="The same, of clips.")
    serves: Literal["all", "images", "videos"] = Field("all", description="Which media it learns from.")
    max_pixels: int = Field(1 << 20, description="Of an image. Small loses detail, large costs tokens.", ge=1024)
    num_frames: int = Field(12, description="Of a clip, evenly spaced. Few miss what happens. Emu3: 12.", gt=0)
    max_frame_pixels: int = Field(200_704, description="Of a frame; 448 x 448. Tokens grow with it.", ge=1024)
    max_tokens: int = Field(512, description="Of a caption; longer ones are learned without their end.", gt=1)


class CaptionerOptimizerConfig(Config):
    """AdamW or Muon over the pairs, linear warm-up, cosine to zero."""

    steps: int | None = Field(None, description="Give steps or epochs; null for both: three epochs.", gt=0)
    epochs: int | None = Field(None, description="Passes over the pairs; many overfit, few learn little.", gt=0)
    batch: int = Field(32, description="Pairs of a step: small is noisy, large learns slowly.", gt=0)
    lr: float = Field(1e-4, description="Small learns slowly, large diverges; 1e-3 and more from scratch.", gt=0)
    muon_lr: float | None = Field(
        None,
        description="Rate of Muon for the matrices of the layers, lr is then that of the rest; 0.02 suits most from "
        "scratch. Null: AdamW for all weights, as fine-tuning wants it.",
        gt=0,
    )
    warmup_steps: int = Field(20, description="Few diverge early, many waste steps.", ge=0)
    weight_decay: float = Field(0.0, description="Small overfits, large forgets what the weights knew.", ge=0)
    clip_norm: float = Field(1.0, description="Small slows, large lets one batch spoil the weights.", gt=0)

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> "CaptionerOptimizerConfig":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give either steps or epochs, not both")
        return self

    @property
    def rates(self) -> OptimizerConfig:
        """The same as the optimizers of the other trainings take it."""
        names = ("steps", "lr", "muon_lr", "warmup_steps", "weight_decay", "clip_norm")
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        return OptimizerConfig(epochs=3 if self.steps is None and self.epochs is None else self.epochs, **values)

    def num_steps(self, num_pairs: int) -> int:
        """Steps over so many pairs."""
        return self.steps or max(1, round((self.rates.epochs or 1) * num_pairs / self.batch))


class CaptionerTrainConfig(Config):
    """One training of a captioner."""

    captions: str = Field(
        "source",
        min_length=1,
        description="What it learns to write: `source`, or the name of a captioner whose captions are in the catalog.",
    )
    joins: str | None = Field(
        None,
        min_length=1,
        description="A file or URI with a line {captions: {NAME: TEXT}, caption: TEXT} for each example (metadata too, "
        "where the prompt holds it): it learns to put captions together and looks at nothing. Null: it looks.",
    )
    model: str | None = Field(
        None, min_length=1, description="Weights to start from: a hub name or a folder; null: see scratch."
    )
    scratch: ScratchConfig | None = Field(
        None, description="A new small model, for pictures of few things; {} for its defaults. Give this or model."
    )
    lora: LoraConfig | None = Field(
        None, description="Null trains all weights: six times the memory, for small models; {} trains LoRA."
    )
    ask: AskConfig = AskConfig()
    optimizer: CaptionerOptimizerConfig = CaptionerOptimizerConfig()
    held_out_share: float = Field(
        0.05,
        description="Of the media, by a hash of their ids. Small judges on few, large learns from few.",
        gt=0,
        lt=1,
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Of the matrix products, and of weights that LoRA leaves alone. auto: bfloat16 where the device "
        "multiplies in it, else float32; a training begun elsewhere goes on as it was begun.",
    )
    seed: int = Field(0, description="Of new weights, order and dropout.", ge=0)

    @model_validator(mode="after")
    def _is_whole(self) -> "CaptionerTrainConfig":
        if self.model is not None and self.scratch is not None:
            raise ValueError("give model or scratch, not both: scratch makes a new model")
        if self.scratch is not None and self.lora is not None:
            raise ValueError("lora learns beside given weights; leave it out with scratch")
        if self.joins is not None and self.captions != "source":
            raise ValueError("joins has the captions to be learned with it; leave `captions` out")
        return self


class CaptionerTrainResources(WorkerResources):
    """How `tokenmill captioner train` runs. Never changes what is computed."""

    batch: int = Field(8, description="Pairs of one pass of a worker; large fills memory.", gt=0)
    recompute: bool = Field(False, description="True computes activations twice and needs far less memory.")
    loaders: int = Field(2, description="Threads of a worker that open media ahead; few let it wait.", gt=0)
    checkpoint_steps: int = Field(100, description="Small writes often, large loses work at a crash.", gt=0)
    held_out_steps: int = Field(50, description="Between losses of held-out pairs; small costs time.", gt=0)
    judge_media: int = Field(256, description="Held-out media that it captions at the end; few say little.", gt=0)
    judge_batch: int = Field(32, description="Of those at a time; large fills memory.", gt=0)


class Captioner(Config):
    """What `tokenmill captioner train` makes."""

    train: CaptionerTrainConfig = CaptionerTrainConfig()
    resources: CaptionerTrainResources = CaptionerTrainResources()
