"""Duplicates: stored hashes and embeddings of kept media -> the table `duplicates`; opens no medium.

One row is the verdict on one kept medium: `kept` (it stands for itself), `near` (its hash is in the group of a kept
one's, stages/select/near.py) or `semantic` (its embedding is, stages/select/semantic.py); `duplicate_of` is always a
kept medium. Exact copies are one medium already. Images are compared with images, clips with clips.

Verdicts last: the `kept` rows are the record of who was kept before, and new media give way to them. A verdict is made
anew when its medium or its `duplicate_of` is gone or rejected, when the config changes, or when the medium gets the
embedding that it lacked. Old and new verdicts are exchanged in one table version, so that a run killed before it leaves
no trace here, and its successor decides on the same media as an undisturbed run. Order of rows does not matter.

Memory at 10 million media: about 150 bytes each, mostly Arrow's texts, and 2 D more for embeddings of D numbers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from tokenmill.stages.select.near import MAX_RADIUS, hamming, near_duplicates, parse_hashes
from tokenmill.storage.identity import Config, fingerprint_of

DUPLICATES = pa.schema(
    [
        pa.field("media_id", pa.string(), nullable=False),
        pa.field("duplicate_of", pa.string(), nullable=False),  # the medium that stands for it; its own when kept
        pa.field("method", pa.string(), nullable=False),  # kept | near | semantic
        pa.field("distance", pa.float64()),  # to duplicate_of: bits (near), 1 - cosine (semantic); null: kept, or near
        # to a medium that is itself semantic. In a chain of near pairs it can exceed the radius.
        pa.field("fingerprint", pa.string(), nullable=False),  # of the config, as far as it concerns this medium
        pa.field("run_id", pa.string(), nullable=False),
    ]
)
KEPT, NEAR, SEMANTIC = "kept", "near", "semantic"

_METHODS = pa.array([KEPT, NEAR, SEMANTIC])
_NEAR, _SEMANTIC = 1, 2  # positions in it
_HASH, _EMBEDDING = 1, 2  # bits: by what a medium is compared


class DuplicatesConfig(Config):
    """What counts as a duplicate among kept media."""

    near_radius: int | None = Field(
        6,
        description="Bits of the 64 in which copies may differ. Too small: resized, brightened or trimmed copies stay; "
        "too large: strangers are taken for copies, and chains of them for one group; null: off.",
        ge=0,
        le=MAX_RADIUS,
    )
    semantic_eps: float | None = Field(
        None,
        description="1 - cosine of CLIP embeddings up to which media say the same. Too small: only copies go; too "
        "large: whole subjects go (DenseFusion thins out with 0.4); null: off. Needs curate.clip's embedding.",
        gt=0,
        lt=1,
    )
    num_clusters: int | None = Field(
        None,
        description="Of embeddings; they are compared within one. Too few: slow; too many: alike media are parted; "
        "null: one up to 20,000 media, above it the square root of their number.",
        gt=0,
    )


class Rows(Protocol):
    """A table of the catalog (pipeline/catalog/tables.py, which imports the schema from here)."""

    def scan(self, columns: list[str] | None = None, where: pc.Expression | None = None) -> pa.Table: ...

    def append(self, rows: pa.Table, note: dict[str, Any]) -> None: ...

    def edit(
        self,
        where: pc.Expression,
        change: Callable[[pa.Table], pa.Table] | None,
        note: dict[str, Any],
        append: pa.Table | None = None,
    ) -> int: ...


class Tables(Protocol):
    """The tables of a catalog that are used here."""

    @property
    def media(self) -> Rows: ...

    @property
    def duplicates(self) -> Rows: ...


def duplicate_ids(catalog: Tables) -> pa.Array:
    """Ids of the kept media for which another one stands."""
    return catalog.duplicates.scan(["media_id"], pc.field("method") != KEPT)["media_id"].combine_chunks()


@dataclass(frozen=True)
class Verdicts:
    """What is to change in `duplicates`."""

    new: pa.Table  # rows of DUPLICATES without their run
    obsolete: pa.Array  # ids of the media whose rows go
    aside: pa.Array  # ids of the media for which another one stands, after the change
    counts: dict[str, int]  # media `compared` now, rows by method after the change

    @property
    def change(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.new.num_rows or len(self.obsolete))


def find_duplicates(
    catalog: Tables, config: DuplicatesConfig, device: str = "cpu", kept: pc.Expression | None = None
) -> Verdicts:
    """Decide on all kept media that have no verdict; writes nothing.

    `device` is torch's, for embeddings. `kept` says which rows of `media` count (null: those that are not rejected).
    `counts` has no `semantic` when that is off; with it, `without_embedding` counts media that it could not look at.
    """
    kept = pc.field("reject_reason").is_null() if kept is None else kept
    media = _Media(catalog, config, kept)
    recorded = catalog.duplicates.scan(["media_id", "duplicate_of", "method", "fingerprint"])
    verdicts = _Verdicts(media, recorded)
    if verdicts.is_new.any():
        if config.near_radius is not None:
            _find_near(media, verdicts, config.near_radius)
        if config.semantic_eps is not None:
            _find_semantic(catalog, media, verdicts, config, device)
    new = verdicts.rows()
    counts = {"compared": new.num_rows}
    methods = np.bincount(verdicts.methods[media.compared_by > 0], minlength=len(_METHODS)).tolist()
    counts |= dict(zip((KEPT, NEAR, SEMANTIC), methods, strict=True))
    if config.semantic_eps is None:
        del counts[SEMANTIC]
    else:
        counts["without_embedding"] = int((media.compared_by & _EMBEDDING == 0).sum())
    aside = media.ids.filter(pa.array(verdicts.methods > 0))
    return Verdicts(new, verdicts.obsolete["media_id"].combine_chunks(), aside, counts)


def record_duplicates(catalog: Tables, verdicts: Verdicts, run_id: str) -> dict[str, int]:
    """Write what is to change, in at most one version of `duplicates`, none without a change. Returns the counts."""
    note = {"run_id": run_id, "what": "duplicates"}
    runs = pa.repeat(pa.scalar(run_id, pa.string()), verdicts.new.num_rows)
    rows = verdicts.new.append_column(DUPLICATES.field("run_id"), runs)
    if len(verdicts.obsolete):
        catalog.duplicates.edit(pc.field("media_id").isin(verdicts.obsolete), None, note, append=rows)
    else:
        catalog.duplicates.append(rows, note)
    return verdicts.counts


class _Media:
    """Kept media in the order of their ids, which makes every result independent of the order of rows."""

    def __init__(self, catalog: Tables, config: DuplicatesConfig, kept: pc.Expression):
        columns = ["media_id", "kind", "phash", "width_px", "height_px", "sharpness", "aesthetic"]
        self.kept = kept
        table = catalog.media.scan(columns, kept).sort_by("media_id")
        num = table.num_rows
        if num:
            # A medium has two rows between being measured anew and losing the old one; it is no copy of itself.
            is_first = pc.not_equal(table["media_id"].slice(1), table["media_id"].slice(0, num - 1))
            table = table.filter(pa.chunked_array([[True], *is_first.chunks], pa.bool_()))
        self.ids = table["media_id"].combine_chunks()
        self.kinds = table["kind"]
        self.compared_by = np.zeros(len(self.ids), np.int8)
        self.hashes = np.zeros(len(self.ids), np.uint64)
        if config.near_radius is not None:
            has_hash = _numpy(table["phash"].is_valid())
            self.compared_by[has_hash] |= _HASH
            self.hashes[has_hash] = parse_hashes(table["phash"].drop_null())
        if config.semantic_eps is not None:
            embedded = catalog.media.scan(["media_id"], kept & pc.field("embedding").is_valid())["media_id"]
            self.compared_by[_numpy(pc.is_in(self.ids, value_set=embedded.combine_chunks()))] |= _EMBEDDING
        self.pixels = _numbers(table["width_px"]) * _numbers(table["height_px"])
        self.sharpness, self.aesthetic = _numbers(table["sharpness"]), _numbers(table["aesthetic"])
        self.fingerprints = duplicates_fingerprints(config)

    def of_kind(self, kind: str) -> np.ndarray:
        """bool (N,)."""
        return _numpy(pc.equal(self.kinds, kind))


def duplicates_fingerprints(config: DuplicatesConfig) -> list[str]:
    """Fingerprints by what a medium is compared by: a part of the config that does not concern it does not enter.

    So media without an embedding are decided again when they get one, and only then.
    """
    no_semantic = {"semantic_eps": None, "num_clusters": None}
    parts = [config.model_copy(update={"near_radius": None} | no_semantic), config.model_copy(update=no_semantic)]
    parts += [config.model_copy(update={"near_radius": None}), config]
    return [fingerprint_of("duplicates", part) for part in parts]


class _Verdicts:
    """Who stands for each medium: as recorded, and for the new ones at first themselves."""

    def __init__(self, media: _Media, recorded: pa.Table):
        num = len(media.ids)
        self._media = media
        self.stands = np.arange(num)
        self.methods = np.zeros(num, np.int8)
        self.distances = np.full(num, np.nan)
        self.is_new = media.compared_by > 0
        at, of = (_positions(recorded[name], media.ids) for name in ("media_id", "duplicate_of"))
        compared_by = _positions(recorded["fingerprint"], pa.array(media.fingerprints))
        methods = _positions(recorded["method"], _METHODS)
        holds = (at >= 0) & (of >= 0)
        holds[holds] = (compared_by[holds] == media.compared_by[at[holds]]) & (compared_by[holds] > 0)
        was_kept = np.zeros(num, bool)
        was_kept[at[holds & (methods == 0)]] = True
        holds[holds] = was_kept[of[holds]]
        self.stands[at[holds]] = of[holds]
        self.methods[at[holds]] = methods[holds]
        self.is_new[at[holds]] = False
        self.obsolete = recorded.filter(pa.array(~holds))

    def among(self, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the `members`, bool (N,), whose verdicts stay among them, int (M,); and who stands for each of
        these, counted in them, int (M,).
        """
        index = np.flatnonzero(members & members[self.stands])
        return index, np.searchsorted(index, self.stands[index])

    def rows(self) -> pa.Table:
        """Rows of DUPLICATES, without their run, for the new ones."""
        at = np.flatnonzero(self.is_new)
        columns = [
            self._media.ids.take(pa.array(at)),
            self._media.ids.take(pa.array(self.stands[at])),
            _METHODS.take(pa.array(self.methods[at])),
            pa.array(self.distances[at], from_pandas=True),
            pa.array(self._media.fingerprints).take(pa.array(self._media.compared_by[at])),
        ]
        return pa.table(columns, schema=DUPLICATES.remove(DUPLICATES.get_field_index("run_id")))


def _find_near(media: _Media, verdicts: _Verdicts, radius: int) -> None:
    compared = (media.compared_by & _HASH > 0) & (verdicts.methods != _SEMANTIC)
    for kind in pc.unique(media.kinds).to_pylist():
        index, stands = verdicts.among(compared & media.of_kind(kind))
        is_new = verdicts.is_new[index]
        # The aesthetic score of two copies differs by chance; what a copy has lost are pixels and sharpness.
        keys = [media.pixels[index], media.sharpness[index]]
        verdicts.stands[index] = index[near_duplicates(media.hashes[index], radius, keys, is_new, stands)]
    moved = np.flatnonzero(verdicts.is_new & (verdicts.stands != np.arange(len(verdicts.stands))))
    verdicts.methods[moved] = _NEAR
    verdicts.distances[moved] = hamming(media.hashes[moved], media.hashes[verdicts.stands[moved]])


def _find_semantic(catalog: Tables, media: _Media, verdicts: _Verdicts, config: DuplicatesConfig, device: str) -> None:
    # Here, because the command line and the reading of configs start without torch.
    from tokenmill.stages.select.semantic import cosine_distance, semantic_duplicates

    assert config.semantic_eps is not None
    before = verdicts.stands.copy()
    compared = (media.compared_by & _EMBEDDING > 0) & (verdicts.methods != _NEAR)
    for kind in pc.unique(media.kinds).to_pylist():
        asked = compared & media.of_kind(kind)
        if not (asked & verdicts.is_new).any():
            continue
        for at, vectors in _embeddings(catalog, media, asked, kind):
            members = np.zeros(len(asked), bool)
            members[at] = True
            index, stands = verdicts.among(members)
            if len(index) < len(at):
                vectors = vectors[np.searchsorted(at, index)]
            keys = [media.aesthetic[index], media.pixels[index], media.sharpness[index]]
            is_new = verdicts.is_new[index]
            found = semantic_duplicates(vectors, config.semantic_eps, config.num_clusters, keys, is_new, stands, device)
            verdicts.stands[index] = index[found]
            moved = np.flatnonzero(found != stands)
            verdicts.distances[index[moved]] = cosine_distance(vectors, moved, found[moved])
    # Whom a near one gave way to may have given way too.
    verdicts.stands = verdicts.stands[verdicts.stands]
    moved = verdicts.is_new & (verdicts.stands != before)
    verdicts.distances[moved & (verdicts.methods == _NEAR)] = np.nan
    verdicts.methods[moved] = _SEMANTIC


def _embeddings(
    catalog: Tables, media: _Media, asked: np.ndarray, kind: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions, int (M,) ascending, and embeddings, float16 (M, D), of the media `asked`, bool (N,), of one kind; once
    for each length, because vectors of two models cannot be compared.
    """
    where = media.kept & (pc.field("kind") == kind) & pc.field("embedding").is_valid()
    table = catalog.media.scan(["media_id", "embedding"], where)
    lengths = _numpy(pc.list_value_length(table["embedding"]))
    positions = _positions(table["media_id"], media.ids)
    for length in np.unique(lengths[asked[positions]]).tolist():
        is_this = asked[positions] & (lengths == length)
        at = np.unique(positions[is_this])
        vectors = np.empty((len(at), length), np.float16)
        start = 0
        for chunk in table["embedding"].chunks:
            rows = np.flatnonzero(is_this[start : start + len(chunk)])
            values = chunk.take(pa.array(rows)).flatten().to_numpy(zero_copy_only=False)
            vectors[np.searchsorted(at, positions[start + rows])] = values.reshape(len(rows), length)
            start += len(chunk)
        yield at, vectors


def _positions(values: pa.ChunkedArray, known: pa.Array) -> np.ndarray:
    """Where each value stands in `known`, int64 (N,), -1 for nowhere."""
    return _numpy(pc.fill_null(pc.index_in(values, value_set=known), -1)).astype(np.int64)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """float64 (N,); a missing score ranks below all."""
    return _numpy(pc.fill_null(column.cast(pa.float64()), -np.inf))


def _numpy(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return values.to_numpy() if isinstance(values, pa.ChunkedArray) else values.to_numpy(zero_copy_only=False)
