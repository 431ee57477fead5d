"""A training as it is asked for and as it ends: `TrainJob` in, `TrainResult` out. No model is imported for either."""

from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

from tokenmill import storage
from tokenmill.storage.errors import TrainingError
from tokenmill.storage.failures import as_damaged
from tokenmill.storage.identity import fingerprint_of
from tokenmill.training.config import TrainConfig
from tokenmill.training.resources import Monitor

MODEL = "model"  # folder of the model, as transformers loads it
ADAPTER = "adapter"  # folder of what LoRA learned, as peft loads it
PLAN = "plan.json"  # written when all is prepared: a folder with it has begun
INPUTS = "inputs"  # in it: what names the run besides its config: the parent's name, contents of files
ANCESTORS = "ancestors"  # in it: [name, inputs] of the folders that the model goes back to, its parent first
DONE = "done.json"  # the result, written last: a folder with it is finished
SPOKEN = "dialogues.parquet"  # data.dialogues, each with the id of its medium, written before plan.json
KIN = "families.parquet"  # media that are held out with others, or are like one that is not; likewise
PAIRED = "pairs.parquet"  # pairs of drawings that preferences make, written before plan.json
SELECTED = "selected.parquet"  # keys of the media that `data.select` leaves, written before plan.json


SPEEDS = ("tokens_per_s", "mfu", "data_wait")
NOT_LOSSES = {"step", "lr", "grad_norm", "spikes", "tokens", "workers", "seconds", *SPEEDS}  # keys of the log's lines


def is_step(line: dict[str, Any]) -> bool:
    """Whether a line of the log tells of steps; others tell of a validation, or of samples."""
    return "tokens" in line


def told_of(spike: dict[str, Any]) -> str:
    """A step that stood out (training/run/guard.py), for a person."""
    loss = "no number" if spike["loss"] is None else f"{spike['loss']:.3f}"
    usual = "" if spike["usual"] is None else f", usually below {spike['usual']:.3f}"
    return f"step {spike['step']} {spike['did']}: its loss is {loss}{usual}; spikes/ names its documents"


class Asked(IntEnum):
    """What a training is asked while it runs."""

    NOTHING = 0
    SAVE = 1  # a checkpoint now
    STOP = 2  # after a checkpoint


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn while a model trains: what `Sampler.draw` takes, and who decodes them."""

    tokenizer: str  # name, folder or s3:// prefix of the vision tokenizer
    grid_h: int
    grid_w: int
    top_k: int
    top_p: float
    temperature: float
    guidance: float


@dataclass(frozen=True)
class TrainJob:
    """One training: what (`config`), on which token shards, and the folder that holds all it makes.

    The shards are Parquet files of the `tokens` table, or the tars of an export with its `id` and `removed`
    (tokenizer/webdataset_shards.py).
    """

    config: TrainConfig
    shard_uris: list[str]
    codebook_size: int  # of the vision tokenizer that made the shards
    run_uri: str  # a folder or s3:// prefix of this run alone
    tokens_version: int | None = None  # of the `tokens` table; recorded
    tokens_fingerprint: str | None = None  # only rows made with it are used; null: all
    equal_fingerprints: list[str] = field(default_factory=list)  # rows made with these are used as well
    export_id: str | None = None  # null: the names of the shards say what they hold
    removed: dict[str, list[str]] = field(default_factory=dict)  # media_ids that are no part of the export, by tar
    stage: str | None = None  # its name among several; recorded
    parent: str | None = None  # the folder of the finished run whose model it starts from
    given: list[str] = field(default_factory=list)  # identities of the files that the config names
    monitor: Monitor = Monitor()  # like the next, no part of what is trained
    drawing: Drawing | None = None  # of `monitor.prompts`
    text_tokenizer: str | None = field(init=False)  # of the config, a relative folder made absolute
    init_from: str | None = field(init=False)  # a hub name, a folder, an s3:// prefix

    def __post_init__(self) -> None:
        if self.config.dtype == "auto":
            raise ValueError("a job says which dtype it computes in; give bfloat16 or float32 instead of auto")
        # workers run in other folders
        object.__setattr__(self, "run_uri", storage.absolute(self.run_uri))
        uris = [storage.absolute(uri) for uri in self.shard_uris]
        object.__setattr__(self, "shard_uris", sorted(uris, key=lambda uri: uri.rsplit("/", 1)[1]))
        if self.drawing is not None:
            tokenizer = _absolute_folder(self.drawing.tokenizer) or self.drawing.tokenizer
            object.__setattr__(self, "drawing", replace(self.drawing, tokenizer=tokenizer))
        init_from = _absolute_folder(self.config.model.init_from)
        if self.parent is not None:
            object.__setattr__(self, "parent", storage.absolute(self.parent))
            init_from = storage.join(self.parent, MODEL)
        object.__setattr__(self, "init_from", init_from)
        # a model knows the words of its own text tokenizer
        object.__setattr__(self, "text_tokenizer", _absolute_folder(self.config.data.text_tokenizer) or init_from)

    def at(self, *parts: str) -> str:
        """A URI below the run's folder."""
        return storage.join(self.run_uri, *parts)

    @property
    def rows_used(self) -> list[str] | None:
        """Fingerprints of the rows that are used; None: all."""
        return None if self.tokens_fingerprint is None else [self.tokens_fingerprint, *self.equal_fingerprints]

    @property
    def inputs(self) -> list[str]:
        """What the run hangs on besides config and tokens: the name of its parent's folder, contents of files."""
        return [*([] if self.parent is None else [name_of(self.parent)]), *self.given]

    @property
    def fingerprint(self) -> str:
        """Changes with all that the result depends on."""
        names = [uri.rsplit("/", 1)[1] for uri in self.shard_uris]
        return fingerprint_of(
            self.config, self.export_id or names, self.codebook_size, self.tokens_version, self.tokens_fingerprint,
            *self.inputs,
        )  # fmt: skip

    def read_summary(self) -> dict[str, Any] | None:
        """plan.json of the run's folder (training/run/prepare.py), or None before it is written.

        Raises TrainingError when the folder belongs to another job.
        """
        if not storage.exists(self.at(PLAN)):
            return None
        summary = storage.read_json(self.at(PLAN), "job", "plan", "tokens_version", "num_steps")
        if summary["job"] != self.fingerprint:
            raise TrainingError(
                f"{self.run_uri}: holds a run of another config or other token shards (tokens version "
                f"{summary['tokens_version']}, not {self.tokens_version}); give this one another folder, "
                "or delete that one"
            )
        return summary


@dataclass(frozen=True)
class TrainResult:
    """What a finished run made; also stands in its folder as done.json."""

    run_uri: str
    model_uri: str  # a transformers model, its text tokenizer and vocabulary.json
    plan: str  # hash of the plan
    tokens_version: int | None
    num_steps: int
    num_documents: int  # of the index: a text document counts once for each of its pieces
    num_tokens: int  # trained on, with repetitions
    excluded: dict[str, int]  # rows of the shards that were not used, by reason
    fill: float  # share of the packs that documents take
    losses: dict[str, float]  # of the last steps: loss (weighted), text (captions), image, video, document; margin ...
    seconds: float
    resumed_from: int  # step at which the last of its starts began
    num_texts: int = 0  # text documents, each once
    num_text_pieces: int = 0  # what they were cut into
    num_text_tokens: int = 0  # of num_tokens, those of text documents
    dtype: str | None = None  # of the matrix products; null: an older release did not say
    held_out: dict[str, int] = field(default_factory=dict)  # documents that it never saw, by sort; {}: none
    validation: dict[str, float] = field(default_factory=dict)  # losses of these at the end


def read_result(job: TrainJob) -> TrainResult:
    """What its finished run made. Raises DamagedError."""
    uri = job.at(DONE)
    with as_damaged(uri):
        return TrainResult(**storage.read_json(uri))


def name_of(run_uri: str) -> str:
    """The name of a run's folder, which says all that its model depends on."""
    return run_uri.rstrip("/").rsplit("/", 1)[-1]


Lineage = list[tuple[str, list[str]]]


def lineage(run_uri: str) -> Lineage:
    """Name and inputs of the folder of a run, and of those that its model goes back to, its own first; without a plan
    its own name alone.
    """
    plan = storage.join(run_uri, PLAN)
    with as_damaged(plan):
        known = storage.read_json(plan) if storage.exists(plan) else {}
        before = [(name, inputs) for name, inputs in known.get(ANCESTORS, [])]
        return [(name_of(run_uri), known.get(INPUTS, [])), *before]


def _absolute_folder(name: str | None) -> str | None:
    return str(Path(name).absolute()) if name is not None and Path(name).is_dir() else name
