"""The config of a run: one YAML file, strict, checked whole before any work starts.

A misspelt key, a wrong type or an impossible value is one `ConfigError` that names file, key and the nearest valid key.
Each part of the YAML is the Config of the stage or module of that name; `resources` blocks say how, and never enter a
fingerprint.
"""

import difflib
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from tokenmill import storage
from tokenmill.pipeline.jobs_config import Jobs, Variable
from tokenmill.pipeline.phases import Caption, Curate, Sample, Tokenize, Tokenizer, Train, overlaid
from tokenmill.storage.errors import UserError
from tokenmill.storage.identity import Config, Resources
from tokenmill.training.captioner.config import Captioner

CAPTIONS_NAME = "captions.jsonl"  # of a folder of files: lines of file and caption

# Keys that said a thing twice, and what they are now.
_RENAMED = {
    ("caption", "captioner"): "write caption.use, a list: [source], [NAME] of `captioners`, [] for no captions",
    ("train", "data", "text_share"): "write train.data.mixture, shares that make 1: {text: 0.2, media: 0.8}",
}
_MOVED = {("caption", "caption"): "caption", ("tokenize", "tokenize"): "tokenize", ("train", "train"): "train"}


class ConfigError(UserError):
    """The config cannot be used; the message names file, key and the nearest valid key."""


class Source(Config):
    """One place that media come from."""

    uri: str = Field(
        description="A folder or an s3:// prefix, searched recursively; containers may be named singly.", min_length=1
    )
    kind: Literal["files", "webdataset", "parquet", "urls", "text"] = Field(
        "files",
        description="Of what stands there: media; tars of media; Parquet tables of bytes or URLs; lists of URLs (.txt, "
        ".csv, .tsv, .jsonl, .parquet); text documents (.jsonl, .csv, .tsv, .parquet).",
    )
    captions: str | None = Field(
        None, description="A captions.jsonl that stands elsewhere; its file names are relative to its own folder."
    )
    follow_links: bool = Field(
        False, description="False: a link that leads out of the source is a row that says so; true: it is followed."
    )
    column: str | None = Field(None, description="Of bytes, URLs or texts; null finds it by its name.", min_length=1)
    caption_column: str | None = Field(None, description="Null finds it by its name.", min_length=1)

    @model_validator(mode="after")
    def _fits_kind(self) -> "Source":
        if self.captions is not None and self.kind != "files":
            raise ValueError(f"captions belong to kind 'files'; kind '{self.kind}' brings its own: leave it out")
        tabular = self.kind in ("parquet", "urls", "text")
        if not tabular and (self.column is not None or self.caption_column is not None):
            raise ValueError(f"kind '{self.kind}' has no columns; leave column and caption_column out")
        if self.kind == "text" and self.caption_column is not None:
            raise ValueError("a text document has no caption; leave caption_column out")
        return self


class Nodes(Resources):
    """What is asked of the machines of a cluster at `address` before anything is planned."""

    min_nodes: int = Field(1, description="To wait for. Large waits in vain.", gt=0)
    wait_s: float = Field(120.0, description="For min_nodes; then the run goes on with those there are.", ge=0)
    max_nodes: int | None = Field(
        None,
        description="That an autoscaler adds to, head and all: below it a phase waits for CPUs and GPUs that it lacks. "
        "Large waits in vain; null: it stops and says what it lacks.",
        gt=0,
    )
    secrets: list[Variable] = Field(
        [],
        description="Names of environment variables that every node must have (keys of S3, hubs, servers); a run says "
        "which lacks one. Their values stand in no config.",
    )


class Cluster(Resources):
    """Where Ray runs."""

    address: str | None = Field(None, description="An existing cluster's address, or auto; null starts one here.")
    num_cpus: int | None = Field(None, description="CPUs of a cluster started here; null: all.", gt=0)
    local_rows: int = Field(
        1_000,
        description="Up to so many files or media are worked on by processes of this machine, before Ray would have "
        "started. Small: short runs wait for Ray; large: results fill the driver's memory. 0: always Ray.",
        ge=0,
    )
    nodes: Nodes = Nodes()
    commit_every_s: float = Field(30.0, description="Small makes many files, large loses more work at a crash.", gt=0)
    root_wait_s: float = Field(
        0.0, description="For another run at work on the root. 0 stops at once; large waits as long.", ge=0
    )
    stall_s: float = Field(
        300.0, description="Without a result, then the run says what it waits for. Small tires; large hides.", gt=0
    )
    medium_timeout_s: float = Field(
        120.0, description="Without a sign of life. Small rejects slow media, large waits long for hung decoders.", gt=0
    )
    medium_memory_bytes: int = Field(
        4 << 30,
        description="Of one medium at work; on Linux. Small: large media are out_of_memory; large: bombs fill a node.",
        ge=1 << 28,
    )
    file_mb: int = Field(
        256,
        description="Small files are put together up to this. Small: many requests; large: edits rewrite much.",
        gt=0,
    )
    join_rows: int = Field(
        50_000_000,
        description="Larger tables are compared by the cluster. Small: its tasks read ids often; large: driver or task "
        "fills its memory (100 bytes an id).",
        gt=0,
    )
    shard_rows: int = Field(50_000, description="Small makes many files, large takes memory when written.", gt=0)


class RunConfig(Config):
    """A whole run."""

    root: str = Field(description="Folder or s3:// prefix of the tables, checkpoints and models.", min_length=1)
    sources: list[Source] = Field(min_length=1)
    version: int | None = Field(
        None,
        description="Of the dataset, as `tokenmill log` numbers them, to read or train on; null: the newest.",
        ge=0,
    )
    report: bool = Field(
        True, description="Writes ROOT/reports/report.html after a run that changed something; false: never."
    )
    curate: Curate = Curate()
    caption: Caption = Caption()
    tokenize: Tokenize = Tokenize()
    train: Train = Train()
    sample: Sample = Sample()
    tokenizer: Tokenizer = Tokenizer()
    captioner: Captioner = Captioner()
    cluster: Cluster = Cluster()
    jobs: Jobs = Jobs()

    @property
    def fetched(self) -> str:
        """The folder that keeps what URLs gave."""
        return storage.join(self.root, "fetched")

    @model_validator(mode="after")
    def _likeness_has_a_model(self) -> "RunConfig":
        clip = self.curate.clip
        for name in self.caption.order:
            if self.caption.all[name].reads_likeness and not (clip.model and clip.store_embedding):
                raise ValueError(
                    f"caption.captioners.{name}.rules read `likeness`: set curate.clip.model, and "
                    "curate.clip.store_embedding: true"
                )
        return self

    @field_validator("root")
    @classmethod
    def _known_scheme(cls, root: str) -> str:
        if "://" in root and not root.startswith("s3://"):
            raise ValueError("use a local path or s3://bucket/prefix")
        if "%" in root:
            raise ValueError("the table format decodes % in addresses; choose a name without it")
        return root


def load(path: str | Path, sets: list[str] | None = None) -> RunConfig:
    """Read a YAML config, over the one that its `extends` names, and apply `--set a.b=value` overrides (values are
    YAML). Raises ConfigError.
    """
    path = Path(path)
    document = _read(path, [])
    for item in sets or []:
        _override(document, item)
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(path, item) for item in error.errors())) from None
    except UnicodeError as error:
        raise ConfigError(f"{path}: holds text that is no Unicode: {error}") from None


def _read(path: Path, extended: list[Path]) -> dict[str, Any]:
    """The document at `path`, which configs `extended` extend."""
    try:
        document = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else "; give the path of a YAML config"
        whose = f"{extended[-1]}: extends: " if extended else ""
        raise ConfigError(f"{whose}{path}: no such file{hint}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: the top level must be keys and values, such as `root: runs/mine`")
    if (name := document.pop("extends", None)) is None:
        return document
    if not isinstance(name, str):
        raise ConfigError(f"{path}: extends: name one config, a path from this one's folder (given: {name!r})")
    if path.resolve() in extended:
        raise ConfigError(f"{path}: extends itself, by way of {', '.join(each.name for each in extended)}")
    return overlaid(_read(path.parent / name, [*extended, path.resolve()]), document)


def with_keys_of_today(document: dict[str, Any]) -> dict[str, Any]:
    """A config as an older release dumped it into a record, under the keys that it has now."""
    made = dict(document)
    for outer, inner in _MOVED:
        part = made.get(outer)
        if isinstance(part, dict) and isinstance(part.get(inner), dict):
            made[outer] = part[inner] | {name: value for name, value in part.items() if name != inner}
    return made


def _override(document: Any, item: str) -> None:
    key, separator, text = item.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {item}: write it as key.sub_key=value")
    try:
        value = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"--set {item}: the value is not YAML: {error}") from None
    *parents, last = key.split(".")
    node = document
    for depth, part in enumerate(parents):
        if isinstance(node, list):
            index = _index(item, node, part)
            node = node[index]
        else:
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {item}: {'.'.join(parents[: depth + 1])} is a value, it has no keys below it")
    if isinstance(node, list):
        if last.isdigit() and int(last) == len(node):
            node.append(value)
        else:
            node[_index(item, node, last)] = value
    else:
        node[last] = value


def _index(item: str, node: list[Any], part: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ConfigError(f"--set {item}: {part!r} is no position in a list of {len(node)} (they count from 0)")
    return int(part)


def _explain(path: Path, error: Any) -> str:
    location = list(error["loc"])
    key = ".".join(str(part) for part in location)
    if error["type"] == "extra_forbidden" and (now := _MOVED.get(tuple(location))) is not None:
        given = error["input"]
        keys = [f"{key}.{name} is now {now}.{name}" for name in given] if isinstance(given, dict) else []
        return f"{path}: {key}: this level is gone: {', '.join(keys) or f'write what it held under {now}'}"
    if error["type"] == "extra_forbidden" and (now := _RENAMED.get(tuple(location))) is not None:
        return f"{path}: {key}: this key is gone: {now}"
    if error["type"] == "extra_forbidden":
        known = _keys_at(RunConfig, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.0)
        hint = f"nearest valid key: {near[0]!r}" if near else f"valid keys: {', '.join(known)}"
        return f"{path}: {key}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{path}: {key}: missing; add it"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) or given is None else ""
    return f"{path}: {key or 'config'}: {message}{shown}"


def _keys_at(model: Any, location: list[Any]) -> list[str]:
    """Valid keys of the model that stands at `location` below `model`."""
    is_name = False  # whether the next part is a name of the user's own
    for part in location:
        if isinstance(part, int) or is_name:
            is_name = False
            continue
        field = model.model_fields.get(part)
        if field is None:
            return []
        is_name = get_origin(field.annotation) is dict
        model = _inner_model(field.annotation)
        if model is None:
            return []
    return list(model.model_fields)


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (list, dict, Union, UnionType):
        for inner in get_args(annotation):
            if found := _inner_model(inner):
                return found
    return None
