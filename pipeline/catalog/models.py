"""Where trained models stand: `<root>/training/<key>`, one folder for each pair of train config and pinned tokens
version.

A config with dtype auto is at home in the folder of each dtype: what was trained or begun on one machine is not
trained anew on another.
"""

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import CatalogError
from tokenmill.storage.cpu import DTYPES, quick_dtype
from tokenmill.storage.identity import fingerprint_of
from tokenmill.tokenizer.webdataset_shards import Export, ExportError, read_export
from tokenmill.training.config import TrainConfig
from tokenmill.training.job import DONE, PLAN


def _suffix(config: TrainConfig) -> str:
    return fingerprint_of("train", config)[:8]


def _as_each_dtype(config: TrainConfig) -> list[TrainConfig]:
    """The config itself, or, with dtype auto, as it is with each."""
    if config.dtype != "auto":
        return [config]
    return [config.model_copy(update={"dtype": dtype}) for dtype in DTYPES]


def run_uri(root: str, config: TrainConfig, tokens_version: int, export_id: str | None = None) -> str:
    """The folder of the training of `config`, its dtype named, on that version of the tokens, from the table or from an
    export.
    """
    export = "" if export_id is None else f"{export_id[:8]}-"
    return storage.join(root, "training", f"v{tokens_version:06d}-{export}{_suffix(config)}")


def with_dtype(root: str, config: TrainConfig, tokens_version: int, export_id: str | None, on_gpu: bool) -> TrainConfig:
    """`config` with its dtype named: auto is that of the training that is finished, else begun, else the one that the
    device multiplies in.
    """
    candidates = _as_each_dtype(config)
    for mark in (DONE, PLAN):
        for each in candidates:
            if storage.exists(storage.join(run_uri(root, each, tokens_version, export_id), mark)):
                return each
    return next((each for each in candidates if each.dtype == quick_dtype(on_gpu)), candidates[0])


def finished(root: str) -> list[str]:
    """Folders of finished trainings, by tokens version."""
    folder = storage.join(storage.absolute(root), "training")
    uris = [storage.join(folder, name) for name in storage.list_names(folder)]
    return [uri for uri in uris if storage.exists(storage.join(uri, DONE))]


def newest(root: str, config: TrainConfig) -> str | None:
    """The finished training of `config` on the newest tokens version, or None."""
    suffixes = tuple(_suffix(each) for each in _as_each_dtype(config))
    found = [uri for uri in finished(root) if uri.endswith(suffixes)]
    return found[-1] if found else None


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
