"""A folder, or what is new in the catalog -> documents that no model was trained on."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import Source
from tokenmill.pipeline.evaluation.given import COLUMNS, Codec, Seen, of_row
from tokenmill.pipeline.evaluation.unseen import TrainedOn
from tokenmill.pipeline.refresh.sources import list_sources, with_captions
from tokenmill.pipeline.reports.media_file import MediaFileError
from tokenmill.storage.identity import content_id


def from_folder(
    folder: str, most: int, codec: Codec, known: TrainedOn, told: Callable[[int], None]
) -> tuple[list[Seen], Counter[str]]:
    """At most so many pictures and clips, in an order that is random and always the same, with captions as sources of
    files have them; and how many others by why they are not used. Raises ConfigError.
    """
    rows = with_captions(list_sources([Source(uri=folder)]).rows.read().sort_by("uri")).to_pylist()
    found, left_out = list[Seen](), Counter[str]()
    for place in np.random.default_rng(0).permutation(len(rows)):
        uri, caption = rows[place]["uri"], rows[place]["source_caption"]
        if len(found) == most:
            left_out["more than --n"] = len(rows) - most - left_out.total()
            break
        if known.files([content_id(storage.read_chunks(uri))]):
            left_out["trained on"] += 1
            continue
        try:
            seen = codec.read(Path(uri), caption)
        except MediaFileError:
            left_out["unreadable"] += 1
            continue
        if seen is None:
            left_out["clips, where the tokenizer codes pictures"] += 1
            continue
        found.append(seen)
        told(len(found))
    return found, left_out


def from_catalog(
    catalog: Catalog, most: int, known: TrainedOn, fingerprints: list[str]
) -> tuple[list[Seen], Counter[str]]:
    """Kept rows of the newest tokens that all models held out, or else that are new to them, at most so many of each
    kind, coded as they were; and how many are of which.
    """
    held, fresh = (ask(catalog, most, fingerprints) for ask in (known.held_out, known.fresh))
    found = by_id(catalog, held)
    kinds = Counter(each.document.modality for each in found.values())
    added = Counter[str]()
    for media_id, seen in by_id(catalog, [each for each in fresh if each not in found]).items():
        kind = seen.document.modality
        if kinds[kind] + added[kind] < most:
            found[media_id] = seen
            added[kind] += 1
    counts = Counter({"held out of training": kinds.total(), "new since": added.total()})
    return list(found.values()), +counts


def by_id(catalog: Catalog, media_ids: list[str]) -> dict[str, Seen]:
    """Kept rows of the newest tokens, in the order of their ids."""
    is_asked = pc.field("media_id").isin(pa.array(media_ids, pa.string())) & pc.field("reject_reason").is_null()
    rows = catalog.tokens.scan(COLUMNS, is_asked).to_pylist() if media_ids else []
    return {row["media_id"]: of_row(row) for row in sorted(rows, key=lambda row: row["media_id"])}
