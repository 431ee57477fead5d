"""What URLs gave, kept under the root by content id: deleted with the media that it belongs to."""

from collections.abc import Iterator

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.stages.read.media_bytes import fetched_uri


def delete_fetched(fetched: str, ids: set[str]) -> None:
    """Delete what has one of these content ids."""
    for name in _names(fetched):
        if name in ids:
            storage.delete_file(fetched_uri(fetched, name))


def delete_orphans(catalog: Catalog, fetched: str, dry_run: bool) -> tuple[int, int]:
    """Delete (or with `dry_run` count) what no row of `media` has read; returns files and bytes."""
    names = list(_names(fetched))
    known = set(catalog.media.scan(["file_id"])["file_id"].to_pylist()) if names else set()
    orphans = [fetched_uri(fetched, name) for name in names if name not in known]
    filesystem, _ = storage.filesystem(fetched)
    infos = filesystem.get_file_info([storage.filesystem(uri)[1] for uri in orphans])
    if not dry_run:
        for uri in orphans:
            storage.delete_file(uri)
    return len(orphans), sum(info.size or 0 for info in infos)


def _names(fetched: str) -> Iterator[str]:
    if storage.exists(fetched):
        for folder in storage.list_names(fetched):
            yield from storage.list_names(storage.join(fetched, folder))
