"""Where trained models stand: `<root>/training/<key>`, one folder for each pair of train config and pinned tokens
version, and for each model that it went on from.

A config with dtype auto is at home in the folder of each dtype: what was trained or begun on one machine is not
trained anew on another.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import CatalogError
from tokenmill.pipeline.phases import Train
from tokenmill.storage.cpu import DTYPES, quick_dtype
from tokenmill.storage.identity import fingerprint_of
from tokenmill.tokenizer.webdataset_shards import Export, ExportError, read_export
from tokenmill.training.config import TrainConfig
from tokenmill.training.job import DONE, PLAN, Lineage, lineage, name_of

_VERSION = re.compile(r"v(\d+)-")


@dataclass(frozen=True)
class Place:
    """What the folder of a training is named by, besides its config."""

    tokens_version: int
    export_id: str | None = None  # null: trained from the table
    stage: str | None = None
    inputs: tuple[str, ...] = ()  # what else it hangs on (training/job.py), the name of its parent's folder first

    def uri(self, root: str, config: TrainConfig) -> str:
        """The folder of the training of `config`, its dtype named."""
        export = "" if self.export_id is None else f"{self.export_id[:8]}-"
        stage = "" if self.stage is None else f"{self.stage}-"
        name = f"v{self.tokens_version:06d}-{export}{stage}{_suffix(config, self.inputs)}"
        return storage.join(root, "training", name)


def _suffix(config: TrainConfig, inputs: Iterable[str]) -> str:
    return fingerprint_of("train", config, *inputs)[:8]


def version_of(name: str) -> int | None:
    """The tokens version that a folder's training is of."""
    found = _VERSION.match(name)
    return None if found is None else int(found[1])


def _as_each_dtype(config: TrainConfig) -> list[TrainConfig]:
    """The config itself, or, with dtype auto, as it is with each."""
    if config.dtype != "auto":
        return [config]
    return [config.model_copy(update={"dtype": dtype}) for dtype in DTYPES]


def with_dtype(root: str, config: TrainConfig, place: Place, on_gpu: bool) -> TrainConfig:
    """`config` with its dtype named: auto is that of the training that is finished, else begun, else the one that the
    device multiplies in.
    """
    candidates = _as_each_dtype(config)
    for mark in (DONE, PLAN):
        for each in candidates:
            if storage.exists(storage.join(place.uri(root, each), mark)):
                return each
    return next((each for each in candidates if each.dtype == quick_dtype(on_gpu)), candidates[0])


def finished(root: str) -> list[str]:
    """Folders of finished trainings, by tokens version."""
    folder = storage.join(storage.absolute(root), "training")
    uris = [storage.join(folder, name) for name in storage.list_names(folder)]
    return [uri for uri in uris if storage.exists(storage.join(uri, DONE))]


def newest(root: str, train: Train, stage: str | None = None) -> str | None:
    """The finished training of a stage (default: the last one) on the newest tokens version, or None."""
    return next(reversed(trained(root, train, stage or train.last)), None)


def trained(root: str, train: Train, stage: str | None) -> list[str]:
    """Folders of the finished trainings of a stage, by tokens version."""
    from_nothing = stage is None or train.parent_of(stage) is None
    return [
        uri
        for uri in finished(root)
        if (from_nothing and _ends_as(name_of(uri), train, stage, ())) or _is_of(lineage(uri), train, stage)
    ]


def learned(uri: str) -> set[str]:
    """Kinds of tokens (text, image, video, document) that a finished training, or one that its model goes back to, was
    made on.
    """
    folder = uri.rstrip("/").rsplit("/", 1)[0]
    done = [storage.join(folder, name, DONE) for name, _ in lineage(uri)]
    named = {name for each in done if storage.exists(each) for name in storage.read_json(each)["losses"]}
    return named & {"text", "image", "video", "document"}


def _is_of(runs: Lineage, train: Train, stage: str | None) -> bool:
    """Whether a folder, by its name and those of the folders that its model goes back to, is of this stage."""
    (name, inputs), *before = runs
    if not _ends_as(name, train, stage, inputs):
        return False
    after = None if stage is None else train.parent_of(stage)
    if not before or is_config(train.stage(stage).model.init_from):
        return after is None
    return _is_of(before, train, stage) or (after is not None and _is_of(before, train, after))


def _ends_as(name: str, train: Train, stage: str | None, inputs: Iterable[str]) -> bool:
    return name.endswith(tuple(f"-{_suffix(each, inputs)}" for each in _as_each_dtype(train.stage(stage).what)))


def is_config(init_from: str | None) -> bool:
    """Whether a model is named by the config that trained it."""
    return init_from is not None and init_from.endswith((".yaml", ".yml"))


def export_to_train_on(uri: str, version: int | None) -> Export:
    """An export in place of the table; of `version` unless that is null. Raises CatalogError."""
    try:
        export = read_export(uri)
    except ExportError as error:
        raise CatalogError(f"train.shards: {error}") from None
    if version not in (None, export.tokens_version):
        raise CatalogError(
            f"train.shards: {uri} holds tokens version {export.tokens_version}, not {version}; "
            f"leave --version out, or bring it there with `tokenmill export webdataset --version {version}`"
        )
    return export
