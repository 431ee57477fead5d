"""Index -> the plan: which documents stand in which pack, in which order and form, for the whole run.

The plan is a pure function of index, config and steps. Step s uses packs [s B, (s+1) B), rank r of R those with index
mod R = r; so the state of the data is one number, the step, and a run may resume with any number of workers. No loader
of a peer has exact resume, another world size, mixing and unbroken images together.

An epoch shuffles the row groups of all shards, takes them in windows of `window_documents`, and shuffles and packs the
documents of each window. A corpus below one window is thereby shuffled as a whole, and its plan does not depend on how
its rows are spread over shards; a larger one is read one window of row groups at a time, each row group once per epoch
and worker, where a global shuffle would read a row group for every document.

With a `mixture` an epoch is every document of the largest share once, and as much of the others as their shares of the
tokens take. These run round and round: each epoch goes on where the one before stopped, so what is thinned is seen
whole before any of it is seen again, and no document of a sort is seen twice more often than another.
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
_PURPOSES = {"text": 2, "image": 4, "video": 6, "media": 8, "dialogue": 10}  # of random numbers, this one and the next


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
        # nothing where there is no text, and no dialogue
        for values in (index.piece, index.text_start, index.text_skip, index.dialogue):
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

    Raises TrainingError when `config.mixture` asks for what the index does not hold.
    """
    mixture = None if config.mixture is None else _Mixture(index, config, seed)
    num_wanted = None if steps is None else steps * config.batch_packs
    sizes: list[int] = []
    documents, is_last, is_null = [], [], []
    epoch = 0
    while (len(sizes) < num_wanted) if num_wanted is not None else (epoch < (epochs or 0)):
        packs, last, null = _epoch(index, config, seed, epoch, mixture)
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


def of_sort(index: Index, sort: str) -> np.ndarray:
    """bool (N,): which documents are `text`, `dialogue`, `image`, `video`, or `media`, which are both of these."""
    if sort in ("text", "dialogue"):
        return index.is_text if sort == "text" else index.is_dialogue
    is_medium = ~index.is_text & ~index.is_dialogue
    return is_medium & {"media": True, "video": index.is_video, "image": ~index.is_video}[sort]


class _Mixture:
    """The documents of an epoch: those of the largest share, and what it takes of the others."""

    def __init__(self, index: Index, config: DataConfig, seed: int):
        shares = config.mixture or {}
        for sort, share in shares.items():
            if not of_sort(index, sort).any():
                raise TrainingError(
                    f"data.mixture.{sort} = {share:g}: the token shards hold no {sort} that is used; add a source of "
                    "it, ease what leaves it out (data.select, context_tokens), or take it out of the mixture"
                )
        largest = max(sorted(shares), key=lambda sort: shares[sort])
        self._once = np.flatnonzero(of_sort(index, largest))
        self._others = [
            (shares[sort] / shares[largest], _Rounds(index, sort, config.window_documents, seed))
            for sort in sorted(shares)
            if sort != largest
        ]

    def epoch(self, num_tokens: np.ndarray) -> np.ndarray:
        """Positions in the index, some of them perhaps several times; `num_tokens` by position, in this epoch."""
        once = float(num_tokens[self._once].sum())
        return np.concatenate([self._once, *(rounds.take(share * once, num_tokens) for share, rounds in self._others)])


class _Rounds:
    """The documents of one sort, pass after pass, each pass in an order of its own."""

    def __init__(self, index: Index, sort: str, window_documents: int, seed: int):
        self._index, self._window_documents = index, window_documents
        self._seeds = (seed, _PURPOSES[sort])
        self._documents = np.flatnonzero(of_sort(index, sort))
        self._owed = 0.0  # tokens that are still to come for what was asked
        self._passes = self._ordered()
        self._rest = np.empty(0, np.int64)

    def take(self, wanted: float, num_tokens: np.ndarray) -> np.ndarray:
        """Positions in the index of the next ones: `wanted` tokens in all calls so far, and at most a document more."""
        self._owed += wanted
        taken = [self._rest[:0]]
        while self._owed > 0:
            if not len(self._rest):
                self._rest = next(self._passes)
            ends = np.cumsum(num_tokens[self._rest])
            count = min(int(np.searchsorted(ends, self._owed)) + 1, len(ends))
            taken.append(self._rest[:count])
            self._rest = self._rest[count:]
            self._owed -= float(ends[count - 1])
        return np.concatenate(taken)

    def _ordered(self) -> Iterator[np.ndarray]:
        number, (seed, purpose) = 0, self._seeds
        while True:
            rng = np.random.default_rng([seed, number, purpose])
            windows = _windows(self._index, self._documents, self._window_documents, rng)
            order = np.lexsort((draw(self._index.media[self._documents], seed, number, purpose + 1), windows))
            yield self._documents[order]
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
    index: Index, config: DataConfig, seed: int, epoch: int, mixture: _Mixture | None
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Packs of one epoch as positions in the index; per document of the index: caption last, no caption.

    A text document, or a dialogue, has no caption that could be last or left out.
    """
    is_medium = of_sort(index, "media")
    is_null = (index.caption_tokens == 0) | (draw(index.media, seed, epoch, 1) < config.null_caption_share)
    is_null &= is_medium
    is_last = ~is_null & is_medium & (draw(index.media, seed, epoch, 2) < config.understanding_share)
    num_tokens = sequence_tokens(index, np.arange(len(index)), is_null)
    placed = np.arange(len(index)) if mixture is None else mixture.epoch(num_tokens)

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
