"""What is trained (`TrainConfig`, part of every fingerprint); how stands in training/resources.py.

Emu3's published values stand in the descriptions; the defaults train on a laptop. Optimizer, batch and steps of Emu3
were never published; betas, decay and clipping are those of its fine-tuning code and of Emu3.5.
"""

import math
from importlib.util import find_spec
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from tokenmill.storage.errors import TrainingError
from tokenmill.storage.identity import Config


class LoraConfig(Config):
    """Small matrices beside the weights (LoRA, arXiv 2106.09685), merged into them at the end."""

    rank: int = Field(16, description="Small learns little, large takes memory and forgets more.", gt=0)
    alpha: int = Field(32, description="Their weight times rank: small learns slowly, large diverges.", gt=0)
    dropout: float = Field(0.05, description="0 overfits few pairs, much learns slowly.", ge=0, lt=1)
    modules: str | list[str] = Field(
        "all-linear",
        description="all-linear, a regular expression or endings of names, such as [q_proj, v_proj]. Few learn little.",
    )

    def check_installed(self, key: str) -> None:
        """Raises TrainingError where the library for what `key` of the config wants is not installed."""
        if find_spec("peft") is None:
            raise TrainingError(
                f"{key} needs peft: pip install tokenmill[lora], or set {key}=null, which trains all weights"
            )


class ModelConfig(Config):
    """A decoder-only transformer of the class `Emu3ForCausalLM`."""

    later_fields = frozenset({"lora"})

    hidden_size: int = Field(256, description="Small cannot hold the data, large is slow. Emu3: 4,096.", gt=0)
    num_layers: int = Field(4, description="Few cannot relate far tokens, many are slow. Emu3: 32.", gt=0)
    num_heads: int = Field(4, description="Must divide hidden_size into heads of an even size. Emu3: 32.", gt=0)
    num_kv_heads: int = Field(4, description="Fewer save cache when sampling; must divide num_heads. Emu3: 8.", gt=0)
    intermediate_size: int = Field(768, description="Small cannot hold the data, large is slow. Emu3: 14,336.", gt=0)
    dropout: float = Field(0.1, description="0 collapsed Emu3's training, much learns slowly. Emu3: 0.1.", ge=0, lt=1)
    rope_theta: float = Field(1e6, description="Small blurs far positions. Emu3: 1e6.", gt=1)
    init_from: str | None = Field(
        None,
        description="Of a model to go on from: hub name, folder, or a config, for the newest model it trained. Its "
        "sizes replace those above, and its words are those of data.text_tokenizer null.",
    )
    lora: LoraConfig | None = Field(
        None,
        description="Of a model that is gone on from: {} trains small matrices beside the layers' weights, in a "
        "fraction of the memory, and adds them in the end. Null: all weights.",
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> "ModelConfig":
        if self.hidden_size % self.num_heads or self.hidden_size // self.num_heads % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} / num_heads {self.num_heads} must be an even whole number, such as 64"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} must divide num_heads {self.num_heads}")
        return self


Sort = Literal["text", "image", "video", "media", "dialogue"]
_MEDIA = {"image", "video"}


class LossWeights(NamedTuple):
    """What a predicted token counts in the loss."""

    text: float  # of captions and text documents
    vision: float  # of codes, and of what follows from their grid


class DataConfig(Config):
    """Which rows of the token table become sequences, and how these are packed."""

    later_fields = frozenset({"mixture", "select", "dialogues", "held_out"})

    context_tokens: int = Field(
        5_120,
        description="Longer media are left out and counted, longer texts cut. Emu3: 5,120, then 131,072 with video.",
        gt=16,
    )
    pack_tokens: int = Field(
        40_960, description="Documents share packs of this length; below 8 contexts packs stay part empty.", gt=16
    )
    batch_packs: int = Field(1, description="Packs per optimizer step: small is noisy, large learns slowly.", gt=0)
    window_documents: int = Field(
        100_000, description="Documents packed together: small leaves gaps, large reads shards more at random.", gt=0
    )
    understanding_share: float = Field(
        0.2, description="Share with the caption after the medium; 1 never learns to draw. Unpublished.", ge=0, le=1
    )
    null_caption_share: float = Field(
        0.1, description="Share without caption; 0 leaves nothing to guide against. Emu3's code: 0.05.", ge=0, le=1
    )
    mixture: dict[Sort, Annotated[float, Field(gt=0, le=1)]] | None = Field(
        None,
        description="Shares of the tokens: text, dialogue, image and video, or media for both as they are; 1 in all. "
        "An epoch is one pass over the largest; others are repeated or thinned, what is not named is left out. Small: "
        "forgotten, large: overfitted. Null: as the corpus has it. Emu3: unpublished; Emu3.5: text 0.2.",
    )
    select: dict[Literal["image", "video"], dict[str, str]] = Field(
        {},
        description="By kind, rules over the columns of `media`, as those of curate: media for which one does not "
        "hold, or was not scored, are left out. Strict: few are left, lax: their quality is not raised. {}: all.",
    )
    dialogues: str | None = Field(
        None,
        description="A .jsonl of questions and answers about media of the catalog (docs/tune.md); answers alone count "
        "in the loss. Null: none.",
    )
    held_out: float = Field(
        0.0,
        description="Share of the documents that are never trained on, and that validation looks at: small says little "
        "of what was not seen, large leaves little to learn. 0: none.",
        ge=0,
        le=0.5,
    )
    text_tokenizer: str | None = Field(
        None, description="Hub name or folder; null trains a byte-level BPE on the captions and text documents."
    )
    text_vocab_size: int = Field(
        1_024,
        description="Size of the trained BPE: small makes captions long, large leaves rare ids untrained.",
        ge=264,
    )

    @model_validator(mode="after")
    def _pack_holds_context(self) -> "DataConfig":
        if self.pack_tokens < self.context_tokens:
            raise ValueError(
                f"pack_tokens {self.pack_tokens} must hold a document of context_tokens {self.context_tokens}"
            )
        return self

    @model_validator(mode="after")
    def _shares_are_whole(self) -> "DataConfig":
        if self.mixture is None:
            return self
        if "dialogue" in self.mixture and self.dialogues is None:
            raise ValueError("mixture.dialogue: data.dialogues names no file of them")
        if "media" in self.mixture and _MEDIA & set(self.mixture):
            raise ValueError("mixture: media are images and video; name media, or image and video")
        if not math.isclose(total := math.fsum(self.mixture.values()), 1, abs_tol=1e-6):
            raise ValueError(f"mixture: the shares make {total:g}; they must make 1")
        return self


class OptimizerConfig(Config):
    """AdamW or Muon, linear warm-up, then a schedule."""

    later_fields = frozenset({"muon_lr", "schedule", "text_weight"})

    steps: int | None = Field(None, description="Optimizer steps; give either steps or epochs.", gt=0)
    epochs: int | None = Field(
        None, description="Passes over the data, see data.mixture. Neither it nor steps: one.", gt=0
    )
    lr: float = Field(1e-3, description="Small learns slowly, large diverges. Emu3: 5e-5.", gt=0)
    muon_lr: float | None = Field(
        None,
        description="Rate of Muon for the matrices of the layers; lr is then that of embeddings, head and norms. Small "
        "learns slowly, large diverges; 0.02 suits most. Null: AdamW for all weights, as Emu3.",
        gt=0,
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="Of the rate after the warm-up: to zero, or constant. Emu3: cosine, linear in QFT."
    )
    warmup_steps: int = Field(50, description="Few diverge early, many waste steps. Emu3.5: 700.", ge=0)
    beta1: float = Field(0.9, description="Small is noisy, large overshoots.", ge=0, lt=1)
    beta2: float = Field(0.95, description="Small is noisy, large reacts late to a change.", ge=0, lt=1)
    weight_decay: float = Field(0.1, description="Small overfits, large underfits; matrices only.", ge=0)
    clip_norm: float = Field(1.0, description="Small slows, large lets one batch spoil the weights. Emu3.5: 5.", gt=0)
    vision_weight: float = Field(
        0.5,
        description="Loss weight of all but captions and texts: small draws badly, large drowns captions. Emu3: 0.5; "
        "0 where it learns to understand alone.",
        ge=0,
    )
    text_weight: float = Field(
        1.0,
        description="Loss weight of captions and texts: small writes badly, large drowns codes. Emu3: 1; 0 in QFT.",
        ge=0,
    )

    @property
    def weights(self) -> LossWeights:
        """Loss weights by what is predicted."""
        return LossWeights(self.text_weight, self.vision_weight)

    @model_validator(mode="before")
    @classmethod
    def _one_epoch(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("steps") is None and given.get("epochs") is None:
            return given | {"epochs": 1}
        return given

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> "OptimizerConfig":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give either steps or epochs, and not both")
        if not any(self.weights):
            raise ValueError("text_weight and vision_weight are both 0; then nothing is learned")
        return self


class GuardConfig(Config):
    """What is done with a step whose loss or gradients are no numbers, or whose loss stands out from those before."""

    non_finite: Literal["stop", "skip"] = Field(
        "stop", description="A loss or gradient that is no number: stop, or go on without the step."
    )
    spike: Literal["keep", "skip", "stop"] = Field(
        "keep", description="A loss that stands out: keep the step and mark it, go on without it, or stop."
    )
    spike_factor: float = Field(
        8.0,
        description="Deviations (1.48 times the median one of the last 64 steps) above their median from which a loss "
        "stands out: small finds spikes in every mixed batch, large overlooks them.",
        gt=0,
    )


class PreferenceConfig(Config):
    """Learning from choices between drawings of one prompt (Emu3 3.4), instead of from the corpus."""

    samples: str = Field(description="Folder of drawings that `tokenmill prefer draw` made.", min_length=1)
    votes: list[str] = Field(
        description="Files .jsonl of choices between them, of people or of scores (docs/tune.md).", min_length=1
    )
    beta: float = Field(0.1, description="Small leaves the model far behind, large learns little. Unpublished.", gt=0)
    ntp_weight: float = Field(
        1.0, description="Of the next-token loss of the chosen: small forgets how to draw, large prefers less.", ge=0
    )


class TrainConfig(Config):
    """One training run."""

    later_fields = frozenset({"guard", "preferences"})

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig(epochs=1)
    guard: GuardConfig = GuardConfig()
    preferences: PreferenceConfig | None = Field(None, description="Null learns from the corpus.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Of the matrix products; weights, sums and loss stay float32. auto: bfloat16 where the device "
        "multiplies in it, else float32; a training begun elsewhere goes on as it was begun.",
    )
    seed: int = Field(0, description="Of weights, order and dropout.", ge=0)

    @model_validator(mode="after")
    def _lora_by_adam(self) -> "TrainConfig":
        if self.model.lora is not None and self.optimizer.muon_lr is not None:
            raise ValueError("model.lora is trained by AdamW; set optimizer.muon_lr to null here, or leave lora out")
        return self
