"""Drawings of a prompt, two at a time, for a person to say which is better: what `train.preferences` learns from."""

import hashlib
import itertools
import json
import threading
from collections import Counter
from typing import Any

import numpy as np

from tokenmill import storage
from tokenmill.pipeline.looking.explorer.medium import frames_of
from tokenmill.tokenizer.drawings import read_drawings

_SIZE = ("grid_t", "grid_h", "grid_w", "fps")


class Samples:
    """The drawings of a folder that `tokenmill prefer draw` made. Raises TrainingError where there are none."""

    def __init__(self, folder: str, tokenizer: str, votes_uri: str):
        self.folder, self._tokenizer, self._uri = storage.absolute(folder), tokenizer, votes_uri
        self._rows = {row["sample_id"]: row for row in read_drawings(self.folder).to_pylist()}
        self._groups: dict[tuple, list[str]] = {}
        for name, row in self._rows.items():
            self._groups.setdefault((row["prompt"], *(row[key] for key in _SIZE)), []).append(name)
        self._groups = {key: names for key, names in self._groups.items() if len(names) > 1}
        self._lock = threading.Lock()

    def pair(self, skipped: int) -> dict[str, Any]:
        """The prompt with the fewest votes, `skipped` of them passed over, and two of its drawings that were compared
        least, in an order that says nothing of them; `sides` is empty where all were compared.
        """
        compared = self._compared()
        open_groups = []
        for key, names in self._groups.items():
            pairs = [pair for pair in itertools.combinations(sorted(names), 2) if frozenset(pair) not in compared]
            if pairs:
                done = sum(compared[frozenset(pair)] for pair in itertools.combinations(names, 2))
                open_groups.append((done, _mixed(key[0], done), key, pairs))
        total = sum(len(names) * (len(names) - 1) // 2 for names in self._groups.values())
        found = {"done": len(compared), "of": total, "prompt": "", "sides": [], "moves": False}
        if open_groups:
            *_, key, pairs = sorted(open_groups, key=lambda each: each[:2])[skipped % len(open_groups)]
            often = Counter(name for pair in compared for name in pair)
            best = min(pairs, key=lambda pair: (often[pair[0]] + often[pair[1]], _mixed(*pair)))
            found |= {"prompt": key[0], "sides": sorted(best, key=_mixed), "moves": key[1] is not None}
        return found

    def vote(self, given: dict[str, Any]) -> dict[str, Any]:
        """What a vote says, checked. Raises ValueError for one that is not between two drawings of one prompt."""
        chosen, rejected = given.get("chosen"), given.get("rejected")
        if chosen == rejected or not any(chosen in names and rejected in names for names in self._groups.values()):
            raise ValueError("no vote: chosen and rejected are two drawings of one prompt and size")
        by = given.get("by")
        return {"chosen": chosen, "rejected": rejected, "by": by if isinstance(by, str) and by.strip() else "somebody"}

    def frames(self, sample_id: str) -> np.ndarray | None:
        """uint8 (T, H, W, 3) RGB; null for an unknown drawing."""
        row = self._rows.get(sample_id)
        if row is None:
            return None
        with self._lock:
            grid = (row["grid_t"], row["grid_h"], row["grid_w"])
            return frames_of(self._tokenizer, row["codes"], grid, is_clip=row["grid_t"] is not None)

    def _compared(self) -> Counter[frozenset[str]]:
        lines = storage.read_bytes(self._uri).splitlines() if storage.exists(self._uri) else []
        found: Counter[frozenset[str]] = Counter()
        for vote in map(json.loads, lines):
            if vote["chosen"] in self._rows and vote["rejected"] in self._rows:
                found[frozenset((vote["chosen"], vote["rejected"]))] += 1
        return found


def _mixed(*words: Any) -> bytes:
    return hashlib.blake2b("\0".join(map(str, words)).encode(), digest_size=8).digest()
