"""Which sequences go through together, so that their caches fit the free memory; and how far they are."""

import os
from collections.abc import Callable, Hashable, Iterator, Sequence

import torch

from tokenmill.training.sampling.decoder import Decoder

Told = Callable[[int, int], None]  # tokens that are done, of how many

_SHARE = 0.6  # of the free memory, for caches; scores and fragments take some
_CPU_MOST = 64  # more sequences at once are no quicker on a CPU: its caches hold no more
_TOLD_EVERY = 16  # steps; a GPU is waited for as often


def groups(keys: Sequence[Hashable]) -> Iterator[list[int]]:
    """Places of equal keys, in the order in which these first come."""
    found: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        found.setdefault(key, []).append(place)
    return iter(found.values())


def parts(places: list[int], size: int) -> Iterator[list[int]]:
    """At most `size` of them at a time."""
    for start in range(0, len(places), size):
        yield places[start : start + size]


def num_at_once(decoder: Decoder, num_tokens: int, rows_each: int, most: int | None) -> int:
    """How many sequences of so many tokens go through together, each of `rows_each` rows: `most`, or what fits the free
    memory; at least one.
    """
    if most is not None:
        return most
    sequence_bytes = rows_each * decoder.num_columns(num_tokens) * decoder.column_bytes
    fits = int(_SHARE * _free_bytes(decoder.device) / sequence_bytes)
    return max(1, fits if decoder.device.type == "cuda" else min(fits, _CPU_MOST))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # no Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


class Count:
    """Tokens done, told every few steps: a device is not waited for at each."""

    def __init__(self, told: Told | None, total: int, device: torch.device):
        self._told, self._total, self._device = told, total, device
        self._done = self._steps = 0
        if told is not None:
            told(0, total)

    def step(self, num_tokens: int) -> None:
        """So many tokens more."""
        self._done += num_tokens
        self._steps += 1
        if self._steps % _TOLD_EVERY == 0:
            self._tell()

    def skip(self, num_tokens: int) -> None:
        """So many that do not come: sequences that ended early."""
        self._total -= num_tokens

    def end(self) -> None:
        """All is done."""
        self._tell()

    def _tell(self) -> None:
        if self._told is None:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._told(self._done, self._total)
