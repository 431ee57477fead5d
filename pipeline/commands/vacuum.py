"""`tokenmill vacuum`: files that no version needs are deleted.

These are shards of killed runs, which were never committed, uploads to a store that they did not complete, files of
versions older than the retention time, and what URLs gave that is no medium any more. What models were trained on
stays: versions of `tokens` that a finished training pinned are kept whatever their age.
"""

import time
from collections import Counter

from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog import models
from tokenmill.pipeline.catalog.fetched import delete_orphans
from tokenmill.pipeline.catalog.lease import held, new_run_id
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.reports.terminal import table
from tokenmill.storage import object_store


def vacuum(config: RunConfig, hours: float, dry_run: bool, console: Console) -> Counter[str]:
    """Delete (or with `dry_run` only count) files that no version of the last `hours` needs; returns counts by table.

    Raises CatalogError without a catalog.
    """
    catalog = Catalog(config.root)
    if not catalog.exists():
        raise CatalogError(f"{catalog.root}: no catalog there; nothing to delete")
    pinned = {
        version
        for uri in models.finished(catalog.root)
        if (version := models.version_of(uri.rsplit("/", 1)[1])) is not None
    }
    counts: Counter[str] = Counter()
    made = table(f"Files that no version of the last {hours:g} h needs", "table", "files#", "MB#")
    with held(catalog, new_run_id(), "vacuum"):
        for each in catalog:
            deleted, num_bytes = each.vacuum(hours, dry_run, sorted(pinned) if each.name == "tokens" else [])
            counts[each.name] = deleted
            made.add_row(each.name, str(deleted), f"{num_bytes / 1e6:.1f}")
        orphans, num_bytes = delete_orphans(catalog, config.fetched, dry_run)
        counts["fetched"] = orphans
        made.add_row("fetched", str(orphans), f"{num_bytes / 1e6:.1f}")
        if storage.is_remote(catalog.root):
            begun_before_s = time.time() - hours * 3600
            dropped, num_bytes = object_store.drop_uploads(catalog.root, begun_before_s, dry_run)
            counts["unfinished uploads"] = dropped
            made.add_row("unfinished uploads", str(dropped), f"{num_bytes / 1e6:.1f}")
    console.print(made)
    said = ["Nothing deleted (--dry-run)" if dry_run else "Deleted"]
    whole = {version: catalog.tokens.is_whole(version) for version in sorted(pinned)}
    for is_whole, fate in ((True, "stay"), (False, "lost files before, by `tokenmill forget`")):
        if named := ", ".join(str(version) for version in whole if whole[version] is is_whole):
            said.append(f"tokens versions {named}, which models were trained on, {fate}")
    console.print("; ".join(said), highlight=False)
    return counts
