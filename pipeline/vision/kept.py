"""The kept media of a catalog, curated first: a known corpus is not read again."""

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from tokenmill import stages
from tokenmill.pipeline.catalog.tables import CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.run.runner import run_phases


def kept_media(config: RunConfig, command: str, console: Console) -> pa.Table:
    """Where the kept images and videos are, columns of PLACES, in the order of their ids, which is random.

    Raises what curating raises, and CatalogError without any.
    """
    catalog = run_phases(config, ("curate",), command, console).catalog
    where = pc.field("reject_reason").is_null() & pc.field("kind").isin(["image", "video"])
    media = catalog.media.scan(stages.PLACES.names, where).sort_by("media_id")
    if not media.num_rows:
        raise CatalogError(f"{catalog.root}: no kept media; `tokenmill status` shows why they were rejected")
    return media
