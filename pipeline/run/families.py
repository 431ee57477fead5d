"""Media that a training must hold out together, or not at all, of what the catalog knows: clips of one video, copies.

The table `duplicates` says who stands for whom where `curate.duplicates` looks for copies, which it does not by itself.
So hashes are compared here too, but only those held out with those trained on: a few bits apart are copies of one
picture (stages/select/near.py), whichever kind each medium is, for a still may be a frame of a clip.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.stages.select.near import parse_hashes, wanted_pairs
from tokenmill.training.data.held_out import FAMILIES, is_held_out
from tokenmill.training.data.spoken import media_key

_RADIUS = 6  # bits of 64, as `curate.duplicates.near_radius` suggests


def families(catalog: Catalog, share: float) -> pa.Table:
    """Rows of FAMILIES for the media with tokens that are in a family, or are near one that is trained on."""
    is_used = pc.field("reject_reason").is_null()
    used = catalog.tokens.scan(["media_id"], is_used & (pc.field("kind") != "text"))["media_id"].combine_chunks()
    media = catalog.media.scan(["media_id", "file_id", "phash"], pc.field("media_id").isin(used))
    ids = media["media_id"].combine_chunks()
    family = _standing(catalog, ids, media["file_id"].combine_chunks())
    keys, of = (np.array([media_key(each) for each in column.to_pylist()], np.uint64) for column in (ids, family))
    is_near = np.zeros(len(keys), bool)
    has_hash = media["phash"].is_valid().to_numpy()
    hashes = parse_hashes(media["phash"].drop_null())
    is_near[has_hash] = near_trained(hashes, is_held_out(of, share)[has_hash])
    order = np.argsort(keys)
    order = order[(keys != of)[order] | is_near[order]]
    return pa.table([keys[order], of[order], is_near[order]], schema=FAMILIES)


def near_trained(hashes: np.ndarray, is_held: np.ndarray, radius: int = _RADIUS) -> np.ndarray:
    """bool (N,): which of those held out are within the radius of one that is trained on; `hashes` uint64 (N,)."""
    distinct, at = np.unique(hashes, return_inverse=True)
    has_held, has_trained = (np.bincount(at[is_], minlength=len(distinct)) > 0 for is_ in (is_held, ~is_held))
    is_near = has_held & has_trained
    for first, second in wanted_pairs(distinct, radius, has_held):
        is_near[first[has_trained[second]]] = True
        is_near[second[has_trained[first]]] = True
    return is_held & is_near[at]


def _standing(catalog: Catalog, ids: pa.Array, file_ids: pa.Array) -> pa.Array:
    """The file of each medium, or of the one that stands for it."""
    aside = catalog.duplicates.scan(["media_id", "duplicate_of"], pc.field("media_id") != pc.field("duplicate_of"))
    at = pc.index_in(ids, value_set=aside["media_id"].combine_chunks())
    stands = pc.coalesce(aside["duplicate_of"].combine_chunks().take(at), ids)
    files = catalog.media.scan(["media_id", "file_id"], pc.field("media_id").isin(stands))
    known = pc.index_in(stands, value_set=files["media_id"].combine_chunks())
    return pc.coalesce(files["file_id"].combine_chunks().take(known), file_ids)
