"""What writes captions, whichever engine: requests in, one answer for each in whatever order.

An engine that can go on no more says why in `stopped`; what it has not asked by then comes back as null, asked by the
next run. What is the fault of one medium is a RowError.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from tokenmill.stages.table.rows import RowError


class Request(NamedTuple):
    """One medium, or a span of it: its picture or frames, uint8 (H, W, 3) RGB, or none, and the prompt."""

    pictures: list[np.ndarray]
    prompt: str


class Answer(NamedTuple):
    """What a model wrote. `finish_reason` is `stop`, `length`, or a server's own word; `seconds`: from request to
    answer.
    """

    text: str
    finish_reason: str | None
    tokens_in: int | None
    tokens_out: int | None
    seconds: float | None = None


Result = Answer | RowError | None


class Engine(Protocol):
    """What `Caption` needs of an engine."""

    stopped: str | None

    def answers(self, requests: Iterator[tuple[int, Request]]) -> Iterator[tuple[int, Result]]:
        """A result for each request, by its number. Takes requests as it needs them."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...
