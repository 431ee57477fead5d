"""Captions of several captioners -> the one that training reads of each medium, by `use`.

A list takes the first captioner whose caption counts. Shares draw one captioner for each medium, from its id and
`use_seed`: the same on every machine, whatever else is in the table; where it has none that counts, the others stand
in.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.stages.caption.captioners.config import CaptionConfig
from tokenmill.stages.caption.texts.text import MAY_OPEN, tidy, without_opening
from tokenmill.storage.identity import fingerprint_of

CHOSEN = pa.schema([("media_id", pa.string()), ("caption", pa.string()), ("captioner", pa.string())])
TO_CHOOSE = ["media_id", "captioner", "span", "caption", "reject_reason", "run_id"]  # that `choose_captions` reads


def choose_captions(
    rows: pa.Table, config: CaptionConfig, documents: pa.Array, votes: Mapping[str, str] | None = None
) -> pa.Table:
    """CHOSEN: a row for each medium of which a caption counts. `rows`: TO_CHOOSE of CAPTIONS; of two by one captioner
    the newer run's is taken. `documents`: ids of text documents, whose text is their caption, whoever else writes.
    `votes`: by media_id the captioner that a person found best; it goes before the others where its caption counts.

    The spans of a clip count where all of them do, joined in their order.
    """
    names = list(config.use)
    rows = rows.filter(pc.is_valid(rows["caption"]))
    is_document = pc.is_in(rows["media_id"], value_set=documents)
    at = pc.index_in(rows["captioner"], value_set=pa.array(names, pa.string()))
    is_source = pc.equal(rows["captioner"], "source")
    keep = pc.if_else(is_document, is_source, pc.is_valid(at))
    rows, at = rows.filter(keep), pc.fill_null(at, 0).filter(keep)
    if not rows.num_rows:
        return CHOSEN.empty_table()
    runs, at_run = np.unique(rows["run_id"].to_numpy(), return_inverse=True)  # ids of runs are in order of time
    rank = _rank(rows["media_id"], at.to_numpy(), config) * len(runs) - at_run
    if votes:
        best = pa.array([votes.get(media_id) for media_id in rows["media_id"].to_pylist()], pa.string())
        is_best = pc.fill_null(pc.equal(rows["captioner"], best), False).to_numpy()
        rank -= is_best * (len(names) + 1) * len(runs)
    rows = _joined(rows.append_column("rank", pa.array(rank)))
    if len(pc.unique(rows["media_id"])) < rows.num_rows:
        rows = rows.sort_by([("media_id", "ascending"), ("rank", "ascending")])
        ids = rows["media_id"].combine_chunks()
        is_first = pc.not_equal(ids[1:], ids[:-1])
        rows = rows.filter(pa.concat_arrays([pa.array([True]), is_first]))
    documents_too = pc.is_in(rows["media_id"], value_set=documents)
    return pa.table(
        [rows["media_id"], _short(rows["caption"], documents_too, config), rows["captioner"]], schema=CHOSEN
    )


def _rank(media_ids: pa.ChunkedArray, at: np.ndarray, config: CaptionConfig) -> np.ndarray:
    """int64 (rows,): the lower the better; `at`: the number of the row's captioner in `use`."""
    if not isinstance(config.use, dict):
        return at.astype(np.int64)
    shares = np.array(list(config.use.values()), np.float64)
    drawn = np.searchsorted(np.cumsum(shares) / shares.sum(), _uniform(media_ids, config.use_seed), side="right")
    by_share = np.argsort(np.argsort(-shares, kind="stable"))
    return np.where(at == drawn, 0, 1 + by_share[at]).astype(np.int64)


def _uniform(media_ids: pa.ChunkedArray, seed: int) -> np.ndarray:
    """float64 (rows,) in [0, 1): by the id and the seed alone, of bits that are independent from seed to seed."""
    mixed = np.array([int(media_id[:16], 16) for media_id in media_ids.to_pylist()], np.uint64)
    mixed ^= np.uint64(int(fingerprint_of("use", seed), 16))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # SplitMix64 (Steele 2014)
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2**53


def _joined(rows: pa.Table) -> pa.Table:
    """Rows that count, one for each medium and rank: spans put together."""
    counts = pc.is_null(rows["reject_reason"])
    if rows["span"].null_count == rows.num_rows:
        return rows.filter(counts)
    whole = rows.filter(pc.and_(counts, pc.is_null(rows["span"])))
    spans = rows.filter(pc.is_valid(rows["span"])).sort_by(
        [(name, "ascending") for name in ("media_id", "rank", "span")]
    )
    made: dict[tuple[str, int], dict] = {}
    broken = set()
    for row in spans.to_pylist():
        key = row["media_id"], row["rank"]
        if row["reject_reason"] is not None:
            broken.add(key)
        elif key in made:
            made[key]["caption"] += " " + row["caption"]
        else:
            made[key] = row
    joined = pa.Table.from_pylist([row for key, row in made.items() if key not in broken], schema=rows.schema)
    return pa.concat_tables([whole, joined])


def _short(captions: pa.ChunkedArray, is_whole: pa.ChunkedArray, config: CaptionConfig) -> pa.Array | pa.ChunkedArray:
    is_long = pc.greater(pc.utf8_length(captions), config.max_caption_chars)
    if config.strip_openings:
        is_long = pc.or_(is_long, pc.match_substring_regex(captions, MAY_OPEN, ignore_case=True))
    change = pc.and_(is_long, pc.invert(is_whole))
    some = captions.filter(change).to_pylist()
    texts = [tidy(without_opening(text) if config.strip_openings else text, config.max_caption_chars) for text in some]
    if not texts:
        return captions
    return pc.replace_with_mask(captions.combine_chunks(), change.combine_chunks(), pa.array(texts, pa.string()))
