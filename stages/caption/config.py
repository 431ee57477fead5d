"""Which captioner writes, what it is asked, and how it is reached; what is not how: a new address asks nothing anew."""

import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from tokenmill.stages.caption.managed import ManagedResources
from tokenmill.stages.caption.prompts import load_prompt
from tokenmill.storage.errors import UserError
from tokenmill.storage.identity import Config, content_id, fingerprint_of, weights_id

WITHOUT_MODEL = ("source", "none")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_OF_A_MODEL = ("*.json", "*.jinja", "*.model", "*.txt")  # beside its weights: tokenizer, processor, chat template


class CaptionError(UserError, ValueError):
    """Captions cannot be written so, or no more; the message says why and what to do."""


class SamplingConfig(Config):
    """How a model draws words."""

    temperature: float = Field(default=0.0, ge=0, description="0: the likeliest word; large: captions invent")
    top_p: float = Field(default=1.0, gt=0, le=1, description="small: captions repeat one another; 1: no limit")
    max_tokens: int = Field(
        default=512, gt=0, description="too small: captions are rejected as caption_truncated; too large: loops cost"
    )
    seed: int = Field(default=0, ge=0, description="another one draws other words; nothing at temperature 0")


class ChecksConfig(Config):
    """What an answer must be to count as a caption."""

    min_words: int = Field(default=3, ge=1, description="of a caption; large rejects short ones as caption_too_short")
    max_repeated: float | None = Field(
        default=0.3,
        gt=0,
        le=1,
        description="share of 4-grams that stood there before; small rejects lists, large keeps loops; null: any",
    )
    refusals: bool = Field(default=True, description="false keeps `I cannot`, `As an AI` and the like")
    leaks: bool = Field(default=True, description="false keeps answers that repeat the prompt or hold special tokens")
    truncated: bool = Field(default=True, description="false keeps answers that end at max_tokens")


class CaptionerResources(ManagedResources):
    """How a captioner is reached, how fast, and for how much; changes no caption."""

    urls: tuple[str, ...] = Field(
        default=(), strict=False, description="Of OpenAI-compatible servers, up to /v1; several share the load."
    )
    key_variable: str | None = Field(
        None, description="Name of the environment variable that holds the key; null: none.", pattern=r"^[A-Za-z_]\w*$"
    )
    most_at_once: int = Field(
        256, description="Requests in flight at one server; below, each finds its own number.", gt=0
    )
    timeout_s: float = Field(
        180.0, description="Of one answer. Small asks long ones again; large waits for hung ones.", gt=0
    )
    patience_s: float = Field(
        600.0, description="Without any answer while servers are down or refuse; then the run stops.", gt=0
    )
    tries: int = Field(3, description="Of one medium at a server that answers others.", gt=0)
    max_requests: int | None = Field(None, description="Of one run; then it stops. Null: no limit.", gt=0)
    max_run_tokens: int | None = Field(None, description="In and out, of one run; then it stops. Null: no limit.", gt=0)
    batch: int = Field(8, description="Media of one pass of engine transformers; large fills memory.", gt=0)


class CaptionerConfig(Config):
    """One captioner: a model and what it is asked."""

    engine: Literal["transformers", "openai", "vllm"] = Field(
        description="transformers: a model in the workers; openai: any OpenAI-compatible server; vllm: servers that "
        "the run starts."
    )
    model: str = Field(min_length=1, description="A folder or hub name; of a server the name that it knows it by.")
    prompt: str = Field("dense", min_length=1, description="dense, short, video, text_in_picture, or a file's path.")
    video_prompt: str = Field("video", min_length=1, description="The same, of clips.")
    serves: Literal["all", "images", "videos"] = Field("all", description="Of which media; others have no caption.")
    sampling: SamplingConfig = SamplingConfig()
    max_pixels: int = Field(1 << 20, description="Of an image. Small loses detail, large costs tokens.", ge=1024)
    num_frames: int = Field(12, description="Of a clip, evenly spaced. Emu3: 12.", gt=0)
    max_frame_pixels: int = Field(200_704, description="Of a frame; 448 x 448. Tokens grow with it.", ge=1024)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of engine transformers; auto: bfloat16 where the device multiplies in it, else float32."
    )
    checks: ChecksConfig = ChecksConfig()
    resources: CaptionerResources = CaptionerResources()

    @model_validator(mode="after")
    def _is_reachable(self) -> "CaptionerConfig":
        how = self.resources
        if self.engine == "openai" and not how.urls:
            raise ValueError("engine openai needs resources.urls, such as [http://localhost:8000/v1]")
        if self.engine == "transformers" and (how.urls or how.key_variable):
            raise ValueError("engine transformers asks no server; leave urls and key_variable out")
        if self.engine == "vllm" and (how.command is None or how.urls or how.key_variable):
            raise ValueError("engine vllm needs resources.command, the path of `vllm`, and neither urls nor a key")
        if self.engine != "vllm" and how.command is not None:
            raise ValueError(f"engine {self.engine} starts no server; leave command out, or take engine vllm")
        for url in how.urls:
            if not re.fullmatch(r"https?://[^@\s?#]+", url):
                raise ValueError("resources.urls: write http://HOST/v1, without a key; key_variable names the key")
        return self

    @property
    def identity(self) -> str:
        """What its captions hang on. Raises CaptionError and PromptError."""
        what = self.model_dump(exclude={"resources", "model", "prompt", "video_prompt", "engine"})
        if self.engine == "openai":
            del what["dtype"]
        prompts = [load_prompt(name).identity for name in (self.prompt, self.video_prompt)]
        model = self.model if self.engine == "openai" else model_identity(self.model)
        return fingerprint_of("captioner", self.engine, model, prompts, what)

    @property
    def reads_source(self) -> bool:
        """Whether a prompt holds the source's caption. Raises PromptError."""
        return any("source_caption" in load_prompt(name).slots for name in (self.prompt, self.video_prompt))


class CaptionConfig(Config):
    """Which captioner, and how long a caption may be."""

    captioner: str = Field(
        default="source",
        description="wrong choice: captions of unknown quality (source), or a model without conditions (none); or the "
        "name of one in `captioners`",
    )
    max_caption_chars: int = Field(
        default=2000,
        gt=0,
        description="too small: long captions end in mid-sentence; too large: the text leaves no room for the codes "
        "(Emu3's first stage: about 950 text tokens beside one 512 x 512 image)",
    )
    captioners: dict[str, CaptionerConfig] = Field(default={}, description="Models that write captions, by your names.")

    @model_validator(mode="after")
    def _captioner_is_known(self) -> "CaptionConfig":
        if taken := [name for name in WITHOUT_MODEL if name in self.captioners]:
            raise ValueError(f"captioners.{taken[0]}: the name stands for a captioner without a model; take another")
        if self.captioner not in (*WITHOUT_MODEL, *self.captioners):
            known = ", ".join([*WITHOUT_MODEL, *self.captioners])
            raise ValueError(f"captioner {self.captioner!r} is not among `captioners`; known: {known}")
        return self

    @property
    def active(self) -> CaptionerConfig | None:
        """The model that writes; null: none does."""
        return self.captioners.get(self.captioner)

    @property
    def uses_source(self) -> bool:
        """Whether a new source caption makes a new caption. Raises PromptError."""
        return self.captioner == "source" if self.active is None else self.active.reads_source

    @property
    def identity(self) -> dict[str, Any]:
        """What captions hang on. Raises CaptionError and PromptError."""
        who = self.captioner if self.active is None else self.active.identity
        return {"captioner": who, "max_caption_chars": self.max_caption_chars}


def model_identity(name: str) -> str:
    """Of the files of a model in a folder, else its hub name. Raises CaptionError."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        try:
            weights = weights_id(folder)
        except FileNotFoundError as error:
            raise CaptionError(f"{error}; pass that folder as the captioner's `model`") from error
        others = sorted(path for pattern in _OF_A_MODEL for path in folder.glob(pattern))
        return fingerprint_of("model", weights, [[path.name, content_id([path.read_bytes()])] for path in others])
    if not _HUB_NAME.fullmatch(name):
        raise CaptionError(
            f"{folder}: no such folder; pass as the captioner's `model` a hub name such as "
            "Qwen/Qwen2.5-VL-7B-Instruct, or a folder that save_pretrained() of model and processor wrote"
        )
    return fingerprint_of("model", name)


def check_reachable(name: str, config: CaptionerConfig) -> None:
    """What can be known before any work. Raises CaptionError and PromptError."""
    assert config.identity
    variable = config.resources.key_variable
    if variable is not None and not os.environ.get(variable):
        raise CaptionError(
            f"caption.captioners.{name}.resources.key_variable: the environment has no {variable}; export it, with the "
            "key of your server"
        )
