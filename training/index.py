"""Token shards -> one small record per document: where it stands, its grid, how long its sequence will be.

A shard is a Parquet file of the `tokens` table or a tar of an export (tokenizer/tars.py). Documents are ordered by a
hash of their media_id, so how rows are spread over shards, and which form these have, changes no position.
Reads no codes: only the columns that lengths depend on. A record takes 45 bytes, so 100 million documents are 4.5 GB of
compact arrays. Rows that training cannot use are counted by reason, never dropped in silence.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokenizer import storage, tars
from tokenizer.sequence import SequenceLayout
from tokenizer.text import encode_captions

_COLUMNS = ["media_id", "kind", "grid_t", "grid_h", "grid_w", "fps", "caption", "reject_reason", "fingerprint"]
_KINDS = ("image", "video")
Removed = Mapping[str, list[str]]
_NONE: Removed = {}


@dataclass(frozen=True)
class Index:
    """Columns of equal length, one entry per usable document, in the order of `media`."""

    shard: np.ndarray  # int32, position in the list of shard URIs
    row_group: np.ndarray  # int32, inside the shard, or inside the members file of a tar
    row: np.ndarray  # int32, inside the row group
    media: np.ndarray  # uint64, a hash of media_id: what random decisions about a document depend on
    is_video: np.ndarray  # bool
    grid: np.ndarray  # int32 (N, 3): t, h, w
    medium_tokens: np.ndarray  # int32, the sequence without its caption
    caption_tokens: np.ndarray  # int32, 0 without a caption

    def __len__(self) -> int:
        return len(self.shard)

    def to_table(self) -> pa.Table:
        """One column per array; the grid as three."""
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "grid"}
        return pa.table(columns | {name: self.grid[:, i] for i, name in enumerate(("grid_t", "grid_h", "grid_w"))})

    @classmethod
    def from_table(cls, table: pa.Table) -> "Index":
        """The inverse of `to_table`."""
        grid = np.stack([table[name].to_numpy() for name in ("grid_t", "grid_h", "grid_w")], axis=1)
        return cls(grid=grid, **{f.name: table[f.name].to_numpy() for f in fields(cls) if f.name != "grid"})


def usable_rows(
    shard_uri: str, tokens_fingerprint: str | None, removed: Removed = _NONE
) -> Iterator[tuple[int, pa.Table, Counter[str]]]:
    """Per row group: its number, the rows that training can use (with `row`, int32), and why the others cannot be used.

    `removed` are, by name of a tar, the media_ids of samples that are no part of its export; they are not counted.
    Raises ValueError for a file that is not a token shard.
    """
    is_tar = tars.is_tar(shard_uri)
    columns = [name for name in _COLUMNS if not (is_tar and name == "reject_reason")]  # a tar holds kept rows alone
    gone = pa.array(removed.get(shard_uri.rsplit("/", 1)[1], []), pa.string())
    filesystem, path = storage.filesystem(tars.members_uri(shard_uri) if is_tar else shard_uri)
    with filesystem.open_input_file(path) as stream:
        shard = pq.ParquetFile(stream)
        if missing := set(columns) - set(shard.schema_arrow.names):
            raise ValueError(f"{shard_uri}: no columns {sorted(missing)}; give the files of a `tokens` table")
        for group in range(shard.num_row_groups):
            table = shard.read_row_group(group, columns=columns)
            table = table.append_column("row", pa.array(np.arange(len(table), dtype=np.int32)))
            if is_tar:
                table = table.filter(pc.invert(pc.is_in(table["media_id"], value_set=gone)))
                table = table.append_column("reject_reason", pa.nulls(len(table), pa.string()))
            excluded: Counter[str] = Counter()
            if tokens_fingerprint is not None:
                same = pc.equal(table["fingerprint"], tokens_fingerprint)
                excluded["other_fingerprint"] += len(table) - pc.sum(same).as_py() if len(table) else 0
                table = table.filter(same)
            kept = pc.is_null(table["reject_reason"])
            excluded["rejected"] += len(table) - (pc.sum(kept).as_py() or 0)
            yield group, table.filter(kept), excluded


def captions(shard_uris: list[str], tokens_fingerprint: str | None, removed: Removed = _NONE) -> Iterator[str]:
    """Every caption of the usable rows, in the order of the shards."""
    for uri in shard_uris:
        for _, table, _ in usable_rows(uri, tokens_fingerprint, removed):
            yield from (text for text in table["caption"].to_pylist() if text and text.strip())


def build_index(
    shard_uris: list[str],
    tokens_fingerprint: str | None,
    layout: SequenceLayout,
    context_tokens: int,
    removed: Removed = _NONE,
) -> tuple[Index, Counter[str]]:
    """The index, and how many rows it leaves out by reason: rejected, other_fingerprint, too_long.

    Raises ValueError when nothing is left to train on.
    """
    parts: list[dict[str, np.ndarray]] = []
    excluded: Counter[str] = Counter()
    for position, uri in enumerate(shard_uris):
        for group, table, reasons in usable_rows(uri, tokens_fingerprint, removed):
            excluded += reasons
            part = _records(table, layout)
            part["shard"] = np.full(len(table), position, np.int32)
            part["row_group"] = np.full(len(table), group, np.int32)
            fits = part["medium_tokens"] + part["caption_tokens"] <= context_tokens
            excluded["too_long"] += int((~fits).sum())
            parts.append({name: values[fits] for name, values in part.items()})
    if not sum(len(part["row"]) for part in parts):
        raise ValueError(
            f"no document to train on in {len(shard_uris)} token shards ({dict(excluded)} left out); "
            "tokenize first, or raise context_tokens where documents are too long"
        )
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(columns["media"], kind="stable")
    return Index(**{name: values[order] for name, values in columns.items()}), excluded


def media_key(media_id: str) -> int:
    """The entry of a medium in `Index.media`."""
    return int.from_bytes(hashlib.blake2b(media_id.encode(), digest_size=8).digest(), "little")


def _records(table: pa.Table, layout: SequenceLayout) -> dict[str, np.ndarray]:
    kinds = table["kind"].to_pylist()
    if unknown := set(kinds) - set(_KINDS):
        raise ValueError(f"token shards hold rows of kind {sorted(unknown)}; known kinds are image and video")
    is_video = np.array([kind == "video" for kind in kinds], bool)
    grid = np.stack([table[name].to_numpy() for name in ("grid_t", "grid_h", "grid_w")], axis=1).astype(np.int32)
    texts = [text if text and text.strip() else "" for text in table["caption"].to_pylist()]
    fps = table["fps"].to_pylist()
    medium = [
        layout.num_medium_tokens(h, w, t if video else None, rate if video else None)
        for video, (t, h, w), rate in zip(is_video, grid.tolist(), fps, strict=True)
    ]
    return {
        "row": table["row"].to_numpy(),
        "media": np.array([media_key(media_id) for media_id in table["media_id"].to_pylist()], np.uint64),
        "is_video": is_video,
        "grid": grid.reshape(-1, 3),
        "medium_tokens": np.array(medium, np.int32),
        "caption_tokens": np.array([len(ids) for ids in encode_captions(layout.tokenizer, texts)], np.int32),
    }
