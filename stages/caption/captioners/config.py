"""Which captioner writes, what it is asked, and how it is reached; what is not how: a new address asks nothing anew."""

import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tokenmill.stages.caption.captioners.managed import ManagedResources
from tokenmill.stages.caption.captioners.prompts import Prompt, load_prompt
from tokenmill.stages.select.rules import Rule, check_name
from tokenmill.stages.table.columns import CAPTIONS, MEDIA
from tokenmill.stages.table.rows import pick
from tokenmill.storage.errors import UserError
from tokenmill.storage.identity import Config, content_id, fingerprint_of, weights_id

# What rules over captions may read.
CHECKED = pick(
    CAPTIONS,
    *("words", "truncated", "refused", "boilerplate", "leaked", "repeated", "invented", "likeness", "language"),
    *("finish_reason", "tokens_in", "tokens_out", "seconds"),
)
MODEL_RULES = {
    "not_empty": "words >= 1",
    "not_truncated": "not truncated",
    "not_refused": "not refused",
    "not_leaked": "not leaked",
    "not_repeated": "repeated <= 0.3",
    "not_too_short": "words >= 3",
}
_IN_FINGERPRINT = {"reads", "sampling"}
_OF_PICTURES = {"max_pixels", "num_frames", "max_frame_pixels", "max_span_s"}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_OF_A_MODEL = ("*.json", "*.jinja", "*.model", "*.txt")  # beside its weights: tokenizer, processor, chat template


class CaptionError(UserError, ValueError):
    """Captions cannot be written so, or no more; the message says why and what to do."""


class SamplingConfig(Config):
    """How a model draws words."""

    temperature: float = Field(default=0.0, ge=0, description="0: the likeliest word; large: captions invent")
    top_p: float = Field(default=1.0, gt=0, le=1, description="small: captions repeat one another; 1: no limit")
    max_tokens: int = Field(
        default=512,
        gt=0,
        description="too small: answers are cut, and rejected as not_truncated; too large: loops cost",
    )
    seed: int = Field(default=0, ge=0, description="another one draws other words; nothing at temperature 0")


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
    price_in: float | None = Field(None, description="Of a million tokens in, for `--plan` and `status`.", ge=0)
    price_out: float | None = Field(None, description="Of a million tokens out.", ge=0)
    batch: int = Field(8, description="Media of one pass of engine transformers; large fills memory.", gt=0)
    workers: int | None = Field(None, description="Of this captioner alone; null: as `caption.resources`.", gt=0)
    num_cpus: float | None = Field(None, description="The same.", gt=0)
    num_gpus: float | None = Field(None, description="The same.", ge=0)

    def costs(self, tokens_in: float, tokens_out: float) -> float | None:
        """What so many tokens cost, in the currency of the prices; null without a price."""
        if self.price_in is None and self.price_out is None:
            return None
        return (tokens_in * (self.price_in or 0.0) + tokens_out * (self.price_out or 0.0)) / 1e6


class CaptionerConfig(Config):
    """One captioner: a model, what it is asked, of which media, and what counts of its answers."""

    engine: Literal["source", "transformers", "openai", "vllm"] = Field(
        description="source: what came with the medium; transformers: a model in the workers; openai: any "
        "OpenAI-compatible server; vllm: servers that the run starts."
    )
    model: str = Field("", description="A folder or hub name; of a server the name that it knows it by.")
    prompt: str = Field("dense", min_length=1, description="A shipped one (docs/caption.md), or a file's path.")
    video_prompt: str = Field("video", min_length=1, description="The same, of clips.")
    reads: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="Captioners whose captions it puts together instead of looking; only where all of them count.",
    )
    serves: Literal["all", "images", "videos"] = Field("all", description="Of which media; others get no caption.")
    where: str | None = Field(
        None, description="Of which of these: a rule over the columns of media, `aesthetic >= 5`; null: all."
    )
    only_without: tuple[str, ...] = Field(
        default=(), strict=False, description="Captioners; only where none of them wrote a caption that counts."
    )
    rules: dict[str, str] | None = Field(
        None,
        description="What of it counts, over the columns of captions, the first that does not hold rejects; null: "
        "models' answers that are no captions are left out, all of the source counts.",
    )
    sampling: SamplingConfig = SamplingConfig()
    max_pixels: int = Field(1 << 20, description="Of an image. Small loses detail, large costs tokens.", ge=1024)
    num_frames: int = Field(12, description="Of a clip, or of each span, evenly spaced. Emu3: 12.", gt=0)
    max_frame_pixels: int = Field(200_704, description="Of a frame; 448 x 448. Tokens grow with it.", ge=1024)
    max_span_s: float = Field(
        20.0, description="A longer clip is captioned in even spans, a row for each. Emu3: 10 to 20 s.", gt=0
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of engine transformers; auto: bfloat16 where the device multiplies in it, else float32."
    )
    resources: CaptionerResources = CaptionerResources()

    @field_validator("where")
    @classmethod
    def _where_is_a_rule(cls, where: str | None) -> str | None:
        return where and Rule("where", where, MEDIA).keep

    @field_validator("rules")
    @classmethod
    def _rules_are_rules(cls, rules: dict[str, str] | None) -> dict[str, str] | None:
        for name, keep in (rules or {}).items():
            check_name(name)
            Rule(name, keep, CHECKED)
        return rules

    @model_validator(mode="after")
    def _is_reachable(self) -> "CaptionerConfig":
        how = self.resources
        if self.engine == "openai" and not how.urls:
            raise ValueError("engine openai needs resources.urls, such as [http://localhost:8000/v1]")
        if self.engine in ("source", "transformers") and (how.urls or how.key_variable):
            raise ValueError(f"engine {self.engine} asks no server; leave urls and key_variable out")
        if (self.engine == "source") != (not self.model):
            raise ValueError("engine source has no model, all others have one: set `model`")
        if self.engine == "source" and (self.reads or self.only_without):
            raise ValueError("engine source reads no other captioner; leave reads and only_without out")
        if self.engine == "vllm" and (how.command is None or how.urls or how.key_variable):
            raise ValueError("engine vllm needs resources.command, the path of `vllm`, and neither urls nor a key")
        if self.engine != "vllm" and how.command is not None:
            raise ValueError(f"engine {self.engine} starts no server; leave command out, or take engine vllm")
        for url in how.urls:
            if not re.fullmatch(r"https?://[^@\s?#]+", url):
                raise ValueError("resources.urls: write http://HOST/v1, without a key; key_variable names the key")
        return self

    @property
    def verdicts(self) -> dict[str, str]:
        """The rules that decide what counts."""
        return (MODEL_RULES if self.model else {}) if self.rules is None else self.rules

    @property
    def reads_likeness(self) -> bool:
        """Whether a rule asks how like its medium a caption is."""
        return any("likeness" in Rule(name, keep, CHECKED).columns for name, keep in self.verdicts.items())

    @property
    def identity(self) -> str:
        """What its captions hang on. Raises CaptionError and PromptError."""
        if self.engine == "source":
            return "source"
        what = self.model_dump(include=_IN_FINGERPRINT)
        if self.engine == "transformers":
            what["dtype"] = self.dtype
        if not self.reads:
            what |= self.model_dump(include=_OF_PICTURES)
        prompts = [prompt.identity for prompt in self.prompts]
        model = self.model if self.engine == "openai" else model_identity(self.model)
        return fingerprint_of("captioner", self.engine, model, prompts, what)

    @property
    def prompts(self) -> list[Prompt]:
        """The prompt files, of images and of clips; one of captions. Raises PromptError."""
        if self.engine == "source":
            return []
        names = (self.prompt,) if self.reads else (self.prompt, self.video_prompt)
        return [load_prompt(name) for name in names]

    @property
    def slots(self) -> set[str]:
        """What of a medium's source its prompts hold: `source_caption`, `metadata`. Raises PromptError."""
        if self.engine == "source":
            return {"source_caption"}
        return {slot for prompt in self.prompts for slot in prompt.slots} & {"source_caption", "metadata"}


SOURCE = CaptionerConfig(engine="source")


class CaptionConfig(Config):
    """Who writes captions, and which of them training reads."""

    later_fields = frozenset({"votes"})

    use: tuple[str, ...] | dict[str, float] = Field(
        default=("source",),
        union_mode="left_to_right",
        description="wrong choice: captions of unknown quality. A list: the first captioner whose caption counts; "
        "shares, {long: 0.8, short: 0.2}: one drawn for each medium, the others where it has none; []: no captions",
    )
    use_seed: int = Field(default=0, ge=0, description="another one draws other captioners where `use` has shares")
    votes: str | None = Field(
        default=None,
        description="A file of votes on captions, ROOT/votes/captions.jsonl of `tokenmill explore`: of the captioners "
        "that `use` names the one that a person found best goes first; null: as `use` says",
    )
    max_caption_chars: int = Field(
        default=2000,
        gt=0,
        description="too small: long captions end in mid-sentence; too large: the text leaves no room for the codes "
        "(Emu3's first stage: about 950 text tokens beside one 512 x 512 image)",
    )
    strip_openings: bool = Field(default=True, description="false keeps `The image shows` in front of captions")
    captioners: dict[str, CaptionerConfig] = Field(
        default={}, description="By your names; `source` is there, what came with the medium."
    )

    @field_validator("use", mode="before")
    @classmethod
    def _list_is_tuple(cls, use: Any) -> Any:
        return tuple(use) if isinstance(use, list) else use

    @model_validator(mode="after")
    def _names_are_known(self) -> "CaptionConfig":
        if isinstance(self.use, dict) and not (
            all(share >= 0 for share in self.use.values()) and any(self.use.values())
        ):
            raise ValueError("use: shares are numbers from 0 on, and not all of them 0")
        known = ", ".join(self.all)
        for name, one in self.captioners.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"captioners.{name}: use lower case letters, digits and _")
            if (name == "source") != (one.engine == "source"):
                raise ValueError(f"captioners.{name}: the captioner with engine source is called `source`")
            for other in (*one.reads, *one.only_without):
                if other not in self.all:
                    raise ValueError(f"captioners.{name}: {other!r} is not among `captioners`; known: {known}")
        for name in self.use:
            if name not in self.all:
                raise ValueError(f"use: {name!r} is not among `captioners`; known: {known}")
        self.order  # noqa: B018
        return self

    @property
    def all(self) -> dict[str, CaptionerConfig]:
        """Captioners by name, `source` among them."""
        return {"source": SOURCE} | self.captioners

    @property
    def order(self) -> list[str]:
        """Names of the captioners that `use` needs, each after those that it asks for. Raises ValueError for a ring."""
        found: list[str] = []

        def add(name: str, trail: tuple[str, ...]) -> None:
            if name in trail:
                raise ValueError(f"captioners wait for one another: {' -> '.join((*trail, name))}")
            one = self.all[name]
            for other in (*one.reads, *one.only_without):
                add(other, (*trail, name))
            if name not in found:
                found.append(name)

        for name in self.use:
            add(name, ())
        return found

    def readers(self, slot: str) -> list[str]:
        """Captioners in use whose captions hang on this of the source, `source_caption` or `metadata`."""
        return [name for name in self.order if slot in self.all[name].slots]


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
    if any("captions" in prompt.slots for prompt in config.prompts) != bool(config.reads):
        raise CaptionError(
            f"caption.captioners.{name}: a prompt with {{captions}} and `reads` belong together, such as `prompt: "
            "consolidate` and `reads: [source, NAME]`"
        )
    variable = config.resources.key_variable
    if variable is not None and not os.environ.get(variable):
        raise CaptionError(
            f"caption.captioners.{name}.resources.key_variable: the environment has no {variable}; export it, with the "
            "key of your server"
        )
