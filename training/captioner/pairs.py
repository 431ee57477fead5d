"""Pairs as the training asks for them: opened when a step needs them, so that a million of them fit.

Who is held out is decided by a hash of the medium's id alone: a medium never changes sides, whatever else is added.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

_PARTS = 1 << 32


class Example(NamedTuple):
    """A medium as a captioner sees it: its picture or frames, uint8 (H, W, 3) RGB, what it is asked, and the answer."""

    pictures: list[np.ndarray]
    prompt: str
    caption: str


class Pairs(Protocol):
    """Media and captions, by their numbers."""

    def __len__(self) -> int: ...

    def texts(self) -> Iterator[str]:
        """All prompts, then all captions in order; no medium is opened."""
        ...

    def load(self, number: int) -> Example | None:
        """The pair, from any thread; null where its medium cannot be opened."""
        ...


def is_held_out(media_id: str, share: float) -> bool:
    """Whether a medium is kept from training. A larger share keeps those of a smaller one."""
    digest = hashlib.blake2b(f"held out {media_id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < share * _PARTS


def order(num_pairs: int, batch: int, seed: int, step: int) -> list[int]:
    """Numbers of the pairs of a step, from 0: every pass over them has an order of its own."""
    places = [divmod(position, num_pairs) for position in range(step * batch, (step + 1) * batch)]
    return [int(_order_of_epoch(num_pairs, seed, epoch)[at]) for epoch, at in places]


@lru_cache(maxsize=2)
def _order_of_epoch(num_pairs: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_pairs)


def loaded(pairs: Pairs, batches: Iterator[Sequence[int]], loaders: int) -> Iterator[list[Example]]:
    """The pairs of each batch that can be opened, in order; the next batch is opened meanwhile."""
    with ThreadPoolExecutor(loaders) as pool:

        def begun(numbers: Sequence[int]) -> list[Future[Example | None]]:
            return [pool.submit(pairs.load, number) for number in numbers]

        ahead = next(batches, None)
        waiting = None if ahead is None else begun(ahead)
        while waiting is not None:
            following = next(batches, None)
            ready, waiting = waiting, None if following is None else begun(following)
            yield [example for future in ready if (example := future.result()) is not None]
