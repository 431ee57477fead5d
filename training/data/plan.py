"""Index -> the plan: which documents stand in which pack, in which order and form, for the whole run.

The plan is a pure function of index, config and steps. Step s uses packs [s B, (s+1) B), rank r of R those with index
mod R = r; so the state of the data is one number, the step, and a run may resume with any number of workers. No loader
of a peer has exact resume, another world size, mixing and unbroken images together.

An epoch shuffles the row groups of all shards, takes them in windows of `window_documents`, and shuffles and packs the
documents of each window. A corpus below one window is thereby shuffled as a whole, and its plan does not depend on how
its rows are spread over shards; a larger one is read one window of row groups at a time, each row group once per epoch
and worker, where a global shuffle would read a row group for every document.

With `text_share` an epoch is every medium once and as much text as that share of its tokens takes. Text then runs
round and round: each epoch goes on where the one before stopped, so a thinned corpus is seen whole before any of it is
seen again, and no text document is seen twice more often than another.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tokenmill.storage.errors import TrainingError
from tokenmill.training.config import DataConfig
from tokenmill.training.data.index import Index
from tokenmill.training.data.packing import best_fit_decreasing

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Plan:
    """Packs one after the other: those of `documents` from `starts[p]` to `starts[p + 1]` make pack p."""

    starts: np.ndarray  # int64 (num_packs + 1,)
    documents: np.ndarray  # int64, positions in the index
    is_caption_last: np.ndarray  # bool, understanding order
    is_null_caption: np.ndarray  # bool, unconditional
    num_steps: int
    batch_packs: int

    @property
    def num_packs(self) -> int:
        """Packs of the whole run."""
        return len(self.starts) - 1

    def step_packs(self, step: int, rank: int = 0, world: int = 1) -> list[int]:
        """Packs of this rank at this step. Ranks may have different numbers of them, also none."""
        first = step * self.batch_packs
        last = min(first + self.batch_packs, self.num_packs)
        return [pack for pack in range(first, last) if pack % world == rank]

    def to_table(self) -> pa.Table:
        """One row per placed document."""
        packs = np.repeat(np.arange(self.num_packs), np.diff(self.starts))
        names = ("documents", "is_caption_last", "is_null_caption")
        return pa.table({"pack": packs} | {name: getattr(self, name) for name in names})

    @classmethod
    def from_table(cls, table: pa.Table, num_steps: int, batch_packs: int) -> "Plan":
        """The inverse of `to_table`."""
        packs = table["pack"].to_numpy()
        starts = np.searchsorted(packs, np.arange(packs[-1] + 2))
        names = ("documents", "is_caption_last", "is_null_caption")
        columns = {name: table[name].to_numpy() for name in names}
        return cls(starts, num_steps=num_steps, batch_packs=batch_packs, **columns)

    def hash(self, index: Index) -> str:
        """16 hex digits over the plan and the documents that it places: equal hashes mean equal batches."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(np.array([self.num_steps, self.batch_packs], np.int64).tobytes())
        for values in (self.starts, self.documents, self.is_caption_last, self.is_null_caption):
            digest.update(np.ascontiguousarray(values).tobytes())
        for values in (index.media, index.medium_tokens, index.caption_tokens, index.grid):
            digest.update(np.ascontiguousarray(values).tobytes())
        for values in (index.piece, index.text_start, index.text_skip):  # nothing where there is no text
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


def draw(media: np.ndarray, seed: int, epoch: int, purpose: int) -> np.ndarray:
    """float64 in [0, 1) per document: a hash (splitmix64) of its media key, seed, epoch and purpose alone."""
    state = media.copy()
    with np.errstate(over="ignore"):
        for value in (seed, epoch, purpose):
            state += _GOLDEN * np.uint64(value + 1)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def make_plan(index: Index, config: DataConfig, seed: int, steps: int | None, epochs: int | None) -> Plan:
    """Give either `steps` (as many epochs as they take) or `epochs` (the last step may hold fewer packs).

    Raises TrainingError when `config.text_share` asks for text or media that the index does not hold.
    """
    texts = None if config.text_share is None else _Texts(index, config, seed)
    num_wanted = None if steps is None else steps * config.batch_packs
    sizes: list[int] = []
    documents, is_last, is_null = [], [], []
    epoch = 0
    while (len(sizes) < num_wanted) if num_wanted is not None else (epoch < (epochs or 0)):
        packs, last, null = _epoch(index, config, seed, epoch, texts)
        packs = packs if num_wanted is None else packs[: num_wanted - len(sizes)]
        sizes += [len(pack) for pack in packs]
        placed = np.concatenate(packs)
        documents.append(placed)
        is_last.append(last[placed])
        is_null.append(null[placed])
        epoch += 1
    return Plan(
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.concatenate(documents),
        np.concatenate(is_last),
        np.concatenate(is_null),
        num_steps=-(-len(sizes) // config.batch_packs),
        batch_packs=config.batch_packs,
    )


def sequence_tokens(index: Index, documents: np.ndarray, is_null_caption: np.ndarray) -> np.ndarray:
    """Exact lengths of the sequences of `documents`, positions in the index: int64, of the same shape."""
    caption_tokens = np.where(is_null_caption, 0, index.caption_tokens[documents])
    return index.medium_tokens[documents].astype(np.int64) + caption_tokens


class _Texts:
    """The pieces of text documents, pass after pass, each pass in an order of its own."""

    def __init__(self, index: Index, config: DataConfig, seed: int):
        self._index, self._config, self._seed = index, config, seed
        self._texts = np.flatnonzero(index.is_text)
        self.share = config.text_share or 0.0
        if len(self._texts) == len(index):
            raise TrainingError(
                f"text_share = {config.text_share}: there are text documents alone; set it to null, or add media"
            )
        if self.share and not len(self._texts):
            raise TrainingError(
                f"text_share = {config.text_share}: the token shards hold no text document; add a source of kind "
                "text, or set it to null"
            )
        self._owed = 0.0  # tokens that are still to come for what was asked
        self._passes = self._ordered()
        self._rest = np.empty(0, np.int64)

    def take(self, num_tokens: float) -> np.ndarray:
        """Positions in the index of the next pieces: `num_tokens` in all calls so far, and at most a piece more."""
        self._owed += num_tokens
        taken = [self._rest[:0]]
        while self._owed > 0:
            if not len(self._rest):
                self._rest = next(self._passes)
            ends = np.cumsum(self._lengths(self._rest))
            count = min(int(np.searchsorted(ends, self._owed)) + 1, len(ends))
            taken.append(self._rest[:count])
            self._rest = self._rest[count:]
            self._owed -= float(ends[count - 1])
        return np.concatenate(taken)

    def _lengths(self, pieces: np.ndarray) -> np.ndarray:
        return sequence_tokens(self._index, pieces, np.zeros(len(pieces), bool))

    def _ordered(self) -> Iterator[np.ndarray]:
        number = 0
        while True:
            rng = np.random.default_rng([self._seed, number, 2])
            windows = _windows(self._index, self._texts, self._config.window_documents, rng)
            yield self._texts[np.lexsort((draw(self._index.media[self._texts], self._seed, number, 3), windows))]
            number += 1


def _windows(index: Index, documents: np.ndarray, window_documents: int, rng: np.random.Generator) -> np.ndarray:
    """The window of each of `documents`, int64: their row groups in random order, `window_documents` to a window."""
    places = index.shard[documents].astype(np.int64) << 32 | index.row_group[documents]
    groups = np.unique(places, return_inverse=True)[1]
    sizes = np.bincount(groups)
    order = rng.permutation(len(sizes))
    before = np.cumsum(sizes[order]) - sizes[order]
    windows = np.empty(len(sizes), np.int64)
    windows[order] = before // window_documents
    return windows[groups]


def _epoch(
    index: Index, config: DataConfig, seed: int, epoch: int, texts: _Texts | None
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Packs of one epoch as positions in the index; per document of the index: caption last, no caption.

    A text document has no caption that could be last or left out.
    """
    is_medium = ~index.is_text
    is_null = (index.caption_tokens == 0) | (draw(index.media, seed, epoch, 1) < config.null_caption_share)
    is_null &= is_medium
    is_last = ~is_null & is_medium & (draw(index.media, seed, epoch, 2) < config.understanding_share)
    num_tokens = sequence_tokens(index, np.arange(len(index)), is_null)
    placed = np.arange(len(index))
    if texts is not None:
        media = np.flatnonzero(is_medium)
        wanted = float(num_tokens[media].sum()) * texts.share / (1 - texts.share)
        placed = np.concatenate([media, texts.take(wanted)])

    rng = np.random.default_rng([seed, epoch])
    shuffled = placed[rng.permutation(len(placed))]
    # a generator of its own leaves the order of the documents as it is
    windows = _windows(index, shuffled, config.window_documents, np.random.default_rng([seed, epoch, 1]))
    by_window = np.argsort(windows, kind="stable")
    shuffled, windows = shuffled[by_window], windows[by_window]

    packs = []
    for part in np.split(shuffled, np.flatnonzero(np.diff(windows)) + 1):
        found = best_fit_decreasing(num_tokens[part], config.pack_tokens)
        packs += [part[found[i]] for i in rng.permutation(len(found))]
    return packs, is_last, is_null
