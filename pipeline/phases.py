"""The config of each phase: that of its stages, and the workers that carry them out."""

import re
from collections.abc import Iterable
from typing import Any, Literal, TypeVar, cast

from pydantic import Field, ModelWrapValidatorHandler, model_validator

from tokenmill import stages
from tokenmill.storage.cpu import quick_dtype
from tokenmill.storage.identity import Config, Resources, fingerprint_of
from tokenmill.tokenizer.vision.training.config import VisionTrainConfig
from tokenmill.training.config import ModelConfig, TrainConfig
from tokenmill.training.resources import Monitor, TrainResources, WorkerResources

_STAGE_NAME = re.compile("[a-z][a-z0-9_]*")
_Part = TypeVar("_Part", bound=Config)


class Pool(Resources):
    """A pool of actors for neighbouring stages."""

    workers: int | None = Field(None, description="Too many wait for CPUs; null: one for each CPU or GPU.", gt=0)
    num_cpus: float = Field(0.75, description="CPUs a worker reserves; keep some free for writing shards.", gt=0)
    num_gpus: float = Field(
        0.0,
        description="GPUs a worker reserves; 0 keeps the stage on the CPU; at 0.5 one of two computes while the other "
        "hands over its results.",
        ge=0,
    )
    batch_rows: int = Field(32, description="Small costs calls, large loses more work when a worker dies.", gt=0)


def _part(whole: Config, of: type[_Part]) -> _Part:
    """The fields of `whole` that `of` has: what is computed, without how."""
    return cast(_Part, of.model_construct(**{name: getattr(whole, name) for name in of.model_fields}))


class Curate(Config):
    """Phase one: files become rows of `media`, each kept or rejected with a reason."""

    read: stages.ReadConfig = stages.ReadConfig()
    fetch: stages.FetchConfig = stages.FetchConfig()
    fetch_pace: stages.FetchPace = stages.FetchPace()
    score: stages.ScoreImagesConfig = stages.ScoreImagesConfig()
    split: stages.SplitVideosConfig = stages.SplitVideosConfig()
    text: stages.TextConfig | None = Field(
        None, description="Null looks for no text; {} does, where a rule asks for it."
    )
    clip: stages.ClipConfig = stages.ClipConfig()
    decide: stages.DecideConfig = stages.DecideConfig()
    duplicates: stages.DuplicatesConfig = stages.DuplicatesConfig(near_radius=None)
    all_scores: bool = Field(False, description="True computes every score, also where no verdict hangs on it.")
    resources: Pool = Pool()
    clip_resources: Pool = Pool()

    @property
    def scorers(self) -> tuple[str, ...]:
        """The expensive scorers in use, cheapest first, each with the identity of its config and weights."""
        found = [] if self.text is None else [f"text:{fingerprint_of(self.text)[:8]}"]
        if self.clip.model is not None:
            found.append(f"clip:{stages.clip_identity(self.clip)[:8]}")
        return tuple(found)


class CaptionPool(Pool):
    """The actors that write captions, or ask servers for them."""

    workers: int | None = Field(None, description="Null: one for each CPU or GPU, and one where servers write.", gt=0)
    batch_rows: int = Field(
        0, description="Media handed over together; small idles at each end. 0: 256 where servers write, else 32.", ge=0
    )
    commit_every_s: float = Field(3.0, description="Of a model's captions; answers are kept before.", gt=0)


class Caption(stages.CaptionConfig):
    """Phase two: kept media get captions."""

    resources: CaptionPool = CaptionPool()

    @property
    def what(self) -> stages.CaptionConfig:
        """Who writes, and what is read of it."""
        return _part(self, stages.CaptionConfig)

    def pool(self, name: str) -> Pool:
        """The workers of a captioner, as its engine wants them where nothing else is said."""
        engine, own = self.all[name].engine, self.all[name].resources
        said = {key: value for key in ("workers", "num_cpus", "num_gpus") if (value := getattr(own, key)) is not None}
        is_served = engine in ("openai", "vllm")
        workers = 1 if is_served and self.resources.workers is None else self.resources.workers
        batch_rows = self.resources.batch_rows or (256 if is_served else 32)
        return self.resources.model_copy(update={"workers": workers, "batch_rows": batch_rows} | said)


class TokenizePool(Pool):
    """The actors that hold the vision tokenizer."""

    batch_px: int | None = Field(
        None,
        description="Pixels of one pass on a GPU. Small leaves it idle, large fills its memory: 2^20 take 4 GB of fp32 "
        "with Emu3's tokenizer. Null: what its free memory takes.",
        gt=0,
    )
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = Field(
        None,
        description="Mode of torch.compile for sizes that come often; `reduce-overhead` is CUDA graphs. Each size pays "
        "for compiling, and codes next to a border may flip, as on another GPU. Measured on no GPU yet.",
    )


class Tokenize(stages.TokenizeConfig):
    """Phase three: kept media become rows of `tokens`."""

    frames: stages.LoadFramesConfig = stages.LoadFramesConfig()
    frames_resources: Pool = Pool()
    resources: TokenizePool = TokenizePool()

    @property
    def new_dtype(self) -> str:
        """That of new codes: `auto` is what the device multiplies in."""
        return quick_dtype(self.resources.num_gpus > 0) if self.dtype == "auto" else self.dtype

    @property
    def what(self) -> stages.TokenizeConfig:
        """The tokenizer of new codes. Its dtype is said: rows are known by it, and workers could be of another kind
        than the driver.
        """
        return _part(self, stages.TokenizeConfig).model_copy(update={"dtype": self.new_dtype})


class Stage(TrainConfig):
    """One transformer over the token shards of one pinned version."""

    shards: str | None = Field(
        None,
        description="Folder or s3:// prefix that `tokenmill export webdataset` wrote; null reads the tokens table.",
        min_length=1,
    )
    continues: bool = Field(
        False,
        description="With a new version of the tokens: true goes on from the model of the version before, quick, but "
        "what is gone from the tokens stays learned; false trains anew.",
    )
    resources: TrainResources = TrainResources()
    monitor: Monitor = Monitor()

    @model_validator(mode="after")
    def _workers_suit_the_batch(self) -> "Stage":
        self.resources.sizes(self.data.batch_packs)
        if self.model.init_from is None:  # the sizes of others are known when they are loaded
            model = self.model
            self.resources.parallel.check(model.num_heads, model.num_kv_heads, model.intermediate_size)
        if self.model.lora is not None and self.resources.parallel.tensor > 1:
            raise ValueError("resources.parallel.tensor shares whole weights; with model.lora set it to 1")
        return self

    @model_validator(mode="after")
    def _rules_are_rules(self) -> "Stage":
        stages.columns_chosen_by(self.data.select)
        if self.data.select and self.shards is not None:
            raise ValueError("data.select reads scores, which an export holds none of; leave shards or select out")
        return self

    @property
    def files(self) -> dict[str, str]:
        """The files that the stage names, by key; what is trained hangs on what they hold."""
        found = {} if self.data.dialogues is None else {"data.dialogues": self.data.dialogues}
        if self.preferences is not None:
            found |= {"preferences.samples": self.preferences.samples}
            found |= {f"preferences.votes.{n}": uri for n, uri in enumerate(self.preferences.votes)}
        return found

    @property
    def what(self) -> TrainConfig:
        """What is trained, on whatever shards and machines."""
        return _part(self, TrainConfig)


class NamedStage(Stage):
    """One of several trainings, each from the model of another; with blocks as those of `train`."""

    after: str | None = Field(
        None, description="The stage whose model it starts from; null: the one before. Of the first: none."
    )


class Train(Stage):
    """Phase four: one training, or stages of it one after the other."""

    stages: dict[str, NamedStage] = Field(
        {},
        description="By name, in their order, with keys as those of `train`, which count where a stage says nothing "
        "else; null takes away one of a config that is extended. {}: one training. Emu3: two, then tuning.",
    )
    only: list[str] = Field(
        [], description="Stages to train, where those that they start from are trained; []: all there are."
    )

    @model_validator(mode="wrap")
    @classmethod
    def _stages_say_what_differs(cls, given: Any, handler: ModelWrapValidatorHandler["Train"]) -> "Train":
        if isinstance(given, dict) and isinstance(named := given.get("stages"), dict) and named:
            base = {name: value for name, value in given.items() if name not in ("stages", "only")}
            handler(base)  # so its mistakes are said once
            there = {name: stage for name, stage in named.items() if stage is not None}
            given = given | {"stages": {name: overlaid(base, stage) for name, stage in there.items()}}
        return handler(given)

    @model_validator(mode="after")
    def _stages_follow_each_other(self) -> "Train":
        before: list[str] = []
        for name, stage in self.stages.items():
            if not _STAGE_NAME.fullmatch(name):
                raise ValueError(
                    f"stages.{name}: use lower case letters, digits and _; a name becomes part of a folder's"
                )
            if stage.after is not None and stage.after not in before:
                known = ", ".join(before) or "none"
                raise ValueError(f"stages.{name}.after: no stage {stage.after!r} stands before it; those are: {known}")
            if (parent := self.parent_of(name)) is not None:
                self._check_model(name, self.stages[parent].model, stage.model)
            else:
                _check_start(f"stages.{name}.", stage.model)
            before.append(name)
        if not self.stages:
            _check_start("", self.model)
        if unknown := [name for name in self.only if name not in self.stages]:
            known = ", ".join(self.stages) or "none; `train.stages` names them"
            raise ValueError(f"only: no stage {unknown[0]!r}; there are {known}")
        return self

    @staticmethod
    def _check_model(name: str, before: ModelConfig, after: ModelConfig) -> None:
        """A stage goes on with a model as it is."""
        may = {"dropout", "lora"}
        keys = [key for key in type(after).model_fields if getattr(after, key) != getattr(before, key)]
        if key := next((key for key in keys if key not in may), None):
            raise ValueError(
                f"stages.{name}.model.{key}: {getattr(after, key)} is not that of the stage before, "
                f"{getattr(before, key)}; of a model only dropout and lora may change between stages"
            )

    def parent_of(self, name: str) -> str | None:
        """The stage whose model this one starts from, or None."""
        names = list(self.stages)
        at = names.index(name)
        return self.stages[name].after or (names[at - 1] if at else None)

    def with_starts(self, names: Iterable[str]) -> list[str]:
        """These stages and all that they go back to, in their order."""
        found = set(names)
        for name in reversed(self.stages):
            if name in found and (parent := self.parent_of(name)) is not None:
                found.add(parent)
        return [name for name in self.stages if name in found]

    @property
    def last(self) -> str | None:
        """The last stage that is asked for; None where there is one training without a name."""
        return next(reversed([name for name in self.stages if name in (self.only or self.stages)]), None)

    def stage(self, name: str | None) -> Stage:
        """That of the name, or the one training."""
        return self if name is None else self.stages[name]


def _check_start(name: str, model: ModelConfig) -> None:
    if model.lora is not None and model.init_from is None:
        raise ValueError(
            f"{name}model.lora learns beside the weights of a model that is there already: give model.init_from, or "
            "train a stage before without it"
        )


def overlaid(base: Any, over: Any) -> Any:
    """What `over` says, and where it says nothing, `base`. Where one counts steps, the other's epochs do not count."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    length = {"steps", "epochs"}
    kept = {name: value for name, value in base.items() if not (name in length and length & set(over))}
    return kept | {name: overlaid(base.get(name), value) for name, value in over.items()}


class TokenizerResources(WorkerResources):
    """How `tokenmill tokenizer train` runs."""

    compile: bool = Field(False, description="True pays two minutes of compilation for steps 1.6 times as fast.")
    checkpoint_steps: int = Field(500, description="Small writes often, large loses work at a crash.", gt=0)
    max_data_mb: int = Field(
        2048, description="Pixels that each worker holds; small shows less variety, large fills memory.", gt=0
    )


class Tokenizer(Config):
    """What `tokenmill tokenizer train` makes."""

    train: VisionTrainConfig = VisionTrainConfig()
    resources: TokenizerResources = TokenizerResources()


class SampleResources(Resources):
    """How many samples are made at once, and how their steps run."""

    batch: int | None = Field(
        None, description="Samples at once: small takes longer, large fills memory; null: what fits.", gt=0
    )
    compile: bool = Field(
        False, description="On a GPU: True pays a minute of compilation for steps that are one graph."
    )


class Sample(Config):
    """How the trained model draws and writes; what, is said on the command line."""

    grid_h: int = Field(8, description="Rows of codes; draw what the model was trained on.", gt=0)
    grid_w: int = Field(8, description="Columns of codes.", gt=0)
    top_k: int = Field(2048, description="Small repeats itself, large is noisy. Emu3 draws with 2,048.", gt=0)
    top_p: float = Field(
        1.0,
        description="Of the likeliest with this much probability together: small repeats itself; 1: all.",
        gt=0,
        le=1,
    )
    temperature: float = Field(1.0, description="Small repeats itself, large is noisy.", gt=0)
    guidance: float = Field(3.0, description="Classifier-free guidance; 1 is none, large burns out. Emu3: 3.0.", ge=0)
    text_temperature: float = Field(
        0.0, description="Of captions, answers and texts; 0 takes the likeliest word each time, large rambles.", ge=0
    )
    max_tokens: int = Field(128, description="Small cuts captions, answers and texts off.", gt=0)
    resources: SampleResources = SampleResources()
