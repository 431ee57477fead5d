"""Drawings and choices between them -> pairs, a chosen and a rejected drawing of one prompt.

Drawings stand with their codes, and are never decoded and encoded again (Emu3 3.4): what is learned is what was drawn.
A vote is a line of a .jsonl, {"chosen": sample_id, "rejected": sample_id, "by": who}. Of a prompt the drawing that was
chosen most often and the one rejected most often make the pair, as Emu3 made them of three voters; where no drawing is
ahead of another, the prompt is undecided and left out.
"""

import json
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from tokenmill import storage
from tokenmill.storage.errors import TrainingError
from tokenmill.tokenizer.drawings import DRAWINGS
from tokenmill.tokenizer.sequence import Sequence, SequenceLayout
from tokenmill.training.config import DataConfig
from tokenmill.training.data.index import Index
from tokenmill.training.data.loader import Loader
from tokenmill.training.data.packing import best_fit_decreasing
from tokenmill.training.data.plan import Plan
from tokenmill.training.data.spoken import media_key
from tokenmill.training.pack import Pack

_GRID = ("grid_t", "grid_h", "grid_w", "fps")
_CODES = ("chosen", "rejected")
PAIRS = pa.schema(
    [
        DRAWINGS.field("prompt"),
        *(pa.field(f"{which}_id", pa.string()) for which in _CODES),
        *(DRAWINGS.field(name) for name in _GRID),
        *(pa.field(which, pa.list_(pa.uint16())) for which in _CODES),
    ]
)
_NAMED = 3  # names in a message


def pairs_of(drawings: pa.Table, vote_uris: Iterable[str]) -> tuple[pa.Table, int]:
    """Rows of PAIRS, one for each prompt that is decided, and how many prompts with votes are not.

    Raises TrainingError for a line that is no vote, or names drawings that are not there or are of two prompts.
    """
    rows = {row["sample_id"]: row for row in drawings.to_pylist()}
    scores: dict[tuple, Counter[str]] = {}
    for uri in vote_uris:
        for number, line in enumerate(storage.read_bytes(uri).splitlines(), 1):
            if line.strip():
                one, other = _vote(line, rows, f"{uri}: line {number}")
                score = scores.setdefault((one["prompt"], *(one[name] for name in _GRID)), Counter())
                score[one["sample_id"]] += 1
                score[other["sample_id"]] -= 1
    pairs = [pair for key, score in scores.items() if (pair := _pair(key, score, rows)) is not None]
    return pa.Table.from_pylist(pairs, schema=PAIRS), len(scores) - len(pairs)


def _vote(line: bytes, rows: dict[str, dict], place: str) -> tuple[dict, dict]:
    try:
        vote = json.loads(line)
        ids = [vote["chosen"], vote["rejected"]]
    except (ValueError, TypeError, KeyError) as error:
        raise TrainingError(
            f'{place}: is no vote; write {{"chosen": ID, "rejected": ID}}, of ids that `tokenmill prefer draw` made'
        ) from error
    if unknown := [name for name in ids if name not in rows]:
        raise TrainingError(
            f"{place}: names the unknown drawing {unknown[0]!r}; give the folder that the votes are about as "
            "preferences.samples, or take the line out"
        )
    one, other = (rows[name] for name in ids)
    if any(one[name] != other[name] for name in ("prompt", *_GRID)):
        raise TrainingError(f"{place}: {ids[0]} and {ids[1]} are not of one prompt and size; a vote is between such")
    return one, other


def _pair(key: tuple, score: Counter[str], rows: dict[str, dict]) -> dict | None:
    ranked = sorted(score, key=lambda name: (-score[name], name))
    best, worst = ranked[0], ranked[-1]
    if score[best] <= score[worst]:
        return None
    pair = dict(zip(("prompt", *_GRID), key, strict=True))
    for which, name in zip(_CODES, (best, worst), strict=True):
        pair |= {f"{which}_id": name, which: rows[name]["codes"]}
    return pair


def sequences_of(pair: dict, layout: SequenceLayout) -> list[Sequence]:
    """The chosen one, then the rejected one."""
    shape = [pair[name] for name in ("grid_t", "grid_h", "grid_w") if pair[name] is not None]
    caption = layout.caption_ids(pair["prompt"])
    return [layout.build(np.array(pair[which], np.int64).reshape(shape), caption, pair["fps"]) for which in _CODES]


def pair_index(pairs: pa.Table, layout: SequenceLayout, config: DataConfig) -> tuple[Index, Counter[str]]:
    """One entry per pair, as long as both its sequences, and how many are left out: longer than the context.

    Raises TrainingError when nothing is left.
    """
    captions = [len(layout.caption_ids(text)) for text in pairs["prompt"].to_pylist()]
    grids = [pairs[name].to_pylist() for name in _GRID]
    of_medium = [layout.num_medium_tokens(h, w, t, fps) for t, h, w, fps in zip(*grids, strict=True)]
    each = np.array(captions, np.int32) + np.array(of_medium, np.int32)
    fits = (each <= config.context_tokens) & (2 * each <= config.pack_tokens)
    if not fits.any():
        raise TrainingError(
            f"preferences: of {len(pairs)} pairs none fits; two drawings must fit data.pack_tokens "
            f"{config.pack_tokens} (the shortest take {2 * each.min() if len(each) else 0}); draw and vote, or raise it"
        )
    numbers = np.flatnonzero(fits).astype(np.int32)
    ids = [pairs[f"{which}_id"].to_pylist() for which in _CODES]
    keys = [media_key(f"{one}>{other}") for one, other in zip(*ids, strict=True)]
    nothing = np.zeros(len(numbers), np.int32)
    index = Index(
        shard=nothing - 1,
        row_group=nothing,
        row=nothing,
        media=np.array(keys, np.uint64)[numbers],
        is_video=np.zeros(len(numbers), bool),
        grid=np.zeros((len(numbers), 3), np.int32),
        medium_tokens=2 * each[numbers],
        caption_tokens=nothing,
        dialogue=numbers,
    )
    return index, Counter(too_long=int((~fits).sum()))


class PairLoader(Loader):
    """Packs of pairs: chosen and rejected one after the other, each a document, with the reference of both."""

    def __init__(self, plan: Plan, index: Index, pairs: pa.Table, layout: SequenceLayout, pack_tokens: int):
        super().__init__(plan, index, [], layout, pack_tokens)
        self._pairs = pairs
        self.reference = np.zeros((len(pairs), 2), np.float32)  # log-probability of chosen and rejected

    def sequences(self, slot: int) -> list[Sequence]:
        """Both of a pair."""
        return sequences_of(self._pair(int(self._index.dialogue[self.plan.documents[slot]])), self._layout)

    def pack(self, number: int) -> Pack:
        """Pack `number` of the plan."""
        made = super().pack(number)
        slots = slice(int(self.plan.starts[number]), int(self.plan.starts[number + 1]))
        numbers = self._index.dialogue[self.plan.documents[slots]]
        return Pack(made.ids, made.kinds, made.positions, made.documents, self.reference[numbers].ravel())

    def names(self, number: int) -> list[str]:
        """The drawings of pack `number`: sample_ids."""
        slots = range(self.plan.starts[number], self.plan.starts[number + 1])
        pairs = [self._pair(int(self._index.dialogue[self.plan.documents[slot]])) for slot in slots]
        return [pair[f"{which}_id"] for pair in pairs for which in _CODES]

    def all_pairs(self) -> list[tuple[np.ndarray, Pack]]:
        """Every pair of the index once, apart from the plan: their numbers, and packs of them."""
        lengths = self._index.medium_tokens
        found = []
        for places in best_fit_decreasing(lengths, self._pack_tokens):
            numbers = self._index.dialogue[places]
            parts = [sequence for number in numbers for sequence in sequences_of(self._pair(int(number)), self._layout)]
            found.append((numbers, self.packed(parts)))
        return found

    def _pair(self, number: int) -> dict:
        return self._pairs.slice(number, 1).to_pylist()[0]
