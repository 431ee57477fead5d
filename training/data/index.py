"""Token shards -> one small record per document: where it stands, its grid, how long its sequence will be.

A shard is a Parquet file of the `tokens` table or a tar of an export (tokenizer/webdataset_shards.py). Documents are
ordered by a hash of their media_id, so how rows are spread over shards, and which form these have, changes no position.
Reads no codes: only the columns that lengths depend on. A record takes 45 bytes, so 100 million documents are 4.5 GB of
compact arrays; 57 where the corpus holds text. A text document longer than the context is as many documents here as it
has pieces (training/data/text_pieces.py). Rows that training cannot use are counted by reason, never dropped in
silence.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokenmill import storage
from tokenmill.storage.errors import DamagedError, TrainingError
from tokenmill.tokenizer import webdataset_shards
from tokenmill.tokenizer.sequence import SequenceLayout
from tokenmill.tokenizer.text import encode_captions
from tokenmill.training.data.held_out import Fate, HeldOut
from tokenmill.training.data.spoken import Spoken, media_key, without_long
from tokenmill.training.data.text_pieces import cut_texts

_COLUMNS = ["media_id", "kind", "grid_t", "grid_h", "grid_w", "fps", "caption", "reject_reason", "fingerprint"]
_KINDS = ("image", "video", "text")
_MEDIUM = -1  # the piece of what is no text document
_TEXT_COLUMNS = ("piece", "text_start", "text_skip")
Removed = Mapping[str, list[str]]
_NONE: Removed = {}


def _no_text() -> np.ndarray:
    return np.empty(0, np.int32)


@dataclass(frozen=True)
class Index:
    """Columns of equal length, one entry per usable document, in the order of `media`."""

    shard: np.ndarray  # int32, position in the list of shard URIs
    row_group: np.ndarray  # int32, inside the shard, or inside the members file of a tar
    row: np.ndarray  # int32, inside the row group
    media: np.ndarray  # uint64, a hash of media_id and piece: what random decisions about a document depend on
    is_video: np.ndarray  # bool
    grid: np.ndarray  # int32 (N, 3): t, h, w; 0 for text
    medium_tokens: np.ndarray  # int32, the sequence without its caption; of text the BOS and the EOS that are there
    caption_tokens: np.ndarray  # int32, 0 without a caption; all tokens between BOS and EOS of text
    # These three are empty where the corpus holds no text document.
    piece: np.ndarray = field(default_factory=_no_text)  # int32, 0, 1, ... in its text document; -1 for media
    text_start: np.ndarray = field(
        default_factory=_no_text
    )  # int32, where the piece begins: training/data/text_pieces.py
    text_skip: np.ndarray = field(default_factory=_no_text)  # int32
    dialogue: np.ndarray = field(default_factory=_no_text)  # int32, row of the dialogues, else -1; empty without any
    fate: np.ndarray = field(default_factory=_no_text)  # uint8, Fate; empty: all are trained on

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def is_text(self) -> np.ndarray:
        """bool (N,): pieces of text documents."""
        return self.piece != _MEDIUM if len(self.piece) else np.zeros(len(self), bool)

    def of(self, is_taken: np.ndarray) -> "Index":
        """These documents alone; `is_taken`: bool (N,)."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return Index(**{name: values[is_taken] if len(values) else values for name, values in columns.items()})

    def of_fate(self, fate: Fate) -> "Index":
        """The documents that have it, without saying so."""
        return replace(self.of(self.fate == fate), fate=_no_text())

    @property
    def is_dialogue(self) -> np.ndarray:
        """bool (N,): dialogues, about a medium or not."""
        return self.dialogue >= 0 if len(self.dialogue) else np.zeros(len(self), bool)

    @property
    def num_texts(self) -> int:
        """Text documents, however many pieces they were cut into."""
        return int((self.piece == 0).sum())

    def piece_of(self, document: int) -> int | None:
        """Which piece of a text document stands at a position of the index; None for a medium."""
        return int(self.piece[document]) if len(self.piece) and self.piece[document] != _MEDIUM else None

    def to_table(self) -> pa.Table:
        """One column per array that is not empty; the grid as three."""
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "grid"}
        columns |= {name: self.grid[:, i] for i, name in enumerate(("grid_t", "grid_h", "grid_w"))}
        return pa.table({name: values for name, values in columns.items() if len(values) == len(self)})

    @classmethod
    def from_table(cls, table: pa.Table) -> "Index":
        """The inverse of `to_table`."""
        grid = np.stack([table[name].to_numpy() for name in ("grid_t", "grid_h", "grid_w")], axis=1)
        there = [f.name for f in fields(cls) if f.name in table.column_names]
        return cls(grid=grid, **{name: table[name].to_numpy() for name in there})


def usable_rows(
    shard_uri: str, fingerprints: list[str] | None, removed: Removed = _NONE
) -> Iterator[tuple[int, pa.Table, Counter[str]]]:
    """Per row group: its number, the rows that training can use (with `row`, int32), and why the others cannot be used.

    `removed` are, by name of a tar, the media_ids of samples that are no part of its export; they are not counted.
    Text documents are usable whatever their fingerprint: no vision tokenizer has touched them.
    Raises TrainingError for a file that is not a token shard, DamagedError for one that cannot be read.
    """
    is_tar = webdataset_shards.is_tar(shard_uri)
    columns = [name for name in _COLUMNS if not (is_tar and name == "reject_reason")]  # a tar holds kept rows alone
    gone = pa.array(removed.get(shard_uri.rsplit("/", 1)[1], []), pa.string())
    filesystem, path = storage.filesystem(webdataset_shards.members_uri(shard_uri) if is_tar else shard_uri)
    try:
        whole = filesystem.open_input_file(path)
        shard = pq.ParquetFile(whole)
    except (pa.ArrowException, OSError, ValueError) as error:  # UnicodeDecodeError among them
        raise DamagedError(shard_uri, error) from error
    with whole:
        if missing := set(columns) - set(shard.schema_arrow.names):
            raise TrainingError(f"{shard_uri}: no columns {sorted(missing)}; give the files of a `tokens` table")
        for group in range(shard.num_row_groups):
            table = _row_group(shard, group, columns, shard_uri)
            table = table.append_column("row", pa.array(np.arange(len(table), dtype=np.int32)))
            if is_tar:
                table = table.filter(pc.invert(pc.is_in(table["media_id"], value_set=gone)))
                table = table.append_column("reject_reason", pa.nulls(len(table), pa.string()))
            excluded: Counter[str] = Counter()
            if fingerprints is not None:
                is_used = pc.is_in(table["fingerprint"], value_set=pa.array(fingerprints, pa.string()))
                same = pc.or_(is_used, pc.equal(table["kind"], "text"))
                excluded["other_fingerprint"] += len(table) - pc.sum(same).as_py() if len(table) else 0
                table = table.filter(same)
            kept = pc.is_null(table["reject_reason"])
            excluded["rejected"] += len(table) - (pc.sum(kept).as_py() or 0)
            yield group, table.filter(kept), excluded


def captions(shard_uris: list[str], fingerprints: list[str] | None, removed: Removed = _NONE) -> Iterator[str]:
    """Every caption and text document of the usable rows, in the order of the shards."""
    for uri in shard_uris:
        for _, table, _ in usable_rows(uri, fingerprints, removed):
            yield from (text for text in table["caption"].to_pylist() if text and text.strip())


def build_index(
    shard_uris: list[str],
    fingerprints: list[str] | None,
    layout: SequenceLayout,
    context_tokens: int,
    removed: Removed = _NONE,
    selected: np.ndarray | None = None,
    dialogues: pa.Table | None = None,
    held_out: HeldOut | None = None,
) -> tuple[Index, Counter[str]]:
    """The index, and how many rows it leaves out by reason: rejected, other_fingerprint, not_selected, too_long,
    empty_text. `selected`: sorted `media_key`s of the images and clips that are used; null: all.
    `dialogues`: rows of DIALOGUES, which are documents of their own. `held_out` says the fate of each document.

    No text document is too long: it is cut into pieces of `context_tokens`.

    Raises TrainingError when nothing is left to train on.
    """
    parts: list[dict[str, np.ndarray]] = []
    excluded: Counter[str] = Counter()
    spoken = None if dialogues is None else Spoken(dialogues, layout)
    for position, uri in enumerate(shard_uris):
        for group, table, reasons in usable_rows(uri, fingerprints, removed):
            excluded += reasons
            is_text = pc.equal(table["kind"], "text")
            media = _records(table.filter(pc.invert(is_text)), layout)
            is_selected = np.ones(len(media["row"]), bool) if selected is None else np.isin(media["media"], selected)
            too_long = is_selected & (media["medium_tokens"] + media["caption_tokens"] > context_tokens)
            fits = is_selected & ~too_long
            texts = table.filter(is_text)
            is_written = pc.not_equal(pc.utf8_trim_whitespace(pc.fill_null(texts["caption"], "")), "")
            texts = texts.filter(is_written)
            excluded["not_selected"] += int((~is_selected).sum())
            excluded += Counter(too_long=int(too_long.sum()), empty_text=len(is_written) - len(texts))
            found = [{name: values[fits] for name, values in media.items()}]
            found += [] if spoken is None else [spoken.about(media)]
            found += [_text_records(texts, layout, context_tokens)] if len(texts) else []
            for part in found:
                part["shard"] = np.full(len(part["row"]), position, np.int32)
                part["row_group"] = np.full(len(part["row"]), group, np.int32)
            parts += found
    if spoken is not None:
        parts += spoken.of_words()
        for part in parts:
            part.setdefault("dialogue", np.full(len(part["row"]), -1, np.int32))
        parts, too_long = without_long(parts, context_tokens)
        excluded["too_long"] += too_long
    if not sum(len(part["row"]) for part in parts):
        raise TrainingError(
            f"no document to train on in {len(shard_uris)} token shards ({dict(excluded)} left out); "
            "tokenize first, raise context_tokens where documents are too long, or ease data.select"
        )
    for part in parts:
        family = part.pop("family")
        part |= {} if held_out is None else {"fate": held_out.fates(family)}
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if (columns["piece"] == _MEDIUM).all():
        columns |= {name: _no_text() for name in _TEXT_COLUMNS}
    order = np.argsort(columns["media"], kind="stable")
    return Index(**{name: values[order] if len(values) else values for name, values in columns.items()}), excluded


def _row_group(shard: pq.ParquetFile, group: int, columns: list[str], uri: str) -> pa.Table:
    try:
        table = shard.read_row_group(group, columns=columns)
        table.validate(full=True)
        return table
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedError(uri, error) from error


def _records(table: pa.Table, layout: SequenceLayout) -> dict[str, np.ndarray]:
    kinds = table["kind"].to_pylist()
    if unknown := set(kinds) - set(_KINDS):
        raise TrainingError(f"token shards hold rows of kind {sorted(unknown)}; known kinds are {', '.join(_KINDS)}")
    is_video = np.array([kind == "video" for kind in kinds], bool)
    grid = np.stack([table[name].to_numpy() for name in ("grid_t", "grid_h", "grid_w")], axis=1).astype(np.int32)
    texts = [text if text and text.strip() else "" for text in table["caption"].to_pylist()]
    fps = table["fps"].to_pylist()
    medium = [
        layout.num_medium_tokens(h, w, t if video else None, rate if video else None)
        for video, (t, h, w), rate in zip(is_video, grid.tolist(), fps, strict=True)
    ]
    keys = np.array([media_key(media_id) for media_id in table["media_id"].to_pylist()], np.uint64)
    return {
        "row": table["row"].to_numpy(),
        "media": keys,
        "family": keys,
        "is_video": is_video,
        "grid": grid.reshape(-1, 3),
        "medium_tokens": np.array(medium, np.int32),
        "caption_tokens": np.array([len(ids) for ids in encode_captions(layout.tokenizer, texts)], np.int32),
        "piece": np.full(len(table), _MEDIUM, np.int32),
        "text_start": np.zeros(len(table), np.int32),
        "text_skip": np.zeros(len(table), np.int32),
    }


def _text_records(table: pa.Table, layout: SequenceLayout, context_tokens: int) -> dict[str, np.ndarray]:
    """One record per piece."""
    pieces = cut_texts(table["caption"].to_pylist(), layout, context_tokens)
    ids = table["media_id"].to_pylist()
    keys = [media_key(ids[text], number) for text, number in zip(pieces.text, pieces.number.tolist(), strict=True)]
    return {
        "row": table["row"].to_numpy()[pieces.text],
        "media": np.array(keys, np.uint64),
        "family": np.array([media_key(media_id) for media_id in ids], np.uint64)[pieces.text],
        "is_video": np.zeros(len(keys), bool),
        "grid": np.zeros((len(keys), 3), np.int32),
        "medium_tokens": pieces.structure_tokens,
        "caption_tokens": pieces.text_tokens,
        "piece": pieces.number,
        "text_start": pieces.start,
        "text_skip": pieces.skip,
    }
