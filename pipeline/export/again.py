"""A recorded export brought to the newest version, without what is kept no more."""

from collections.abc import Callable

from rich.console import Console

from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.export import captions, files, hub, webdataset

_SHARD_MB = 256


def export_again(config: RunConfig, kind: str, uri: str, console: Console) -> None:
    """`kind` and `uri` as pipeline/catalog/export_registry.py has them. Raises CatalogError."""
    again: dict[str, Callable[[], None]] = {
        "webdataset": lambda: webdataset.export_webdataset(config, uri, None, _SHARD_MB, True, console),
        "parquet": lambda: hub.export_parquet(config, uri, None, _SHARD_MB, console),
        captions.USED: lambda: captions.export_captions(config, uri, False, console),
        captions.ALL: lambda: captions.export_captions(config, uri, True, console),
    }
    again.get(kind, lambda: files.export_media(config, kind, uri, True, console))()
