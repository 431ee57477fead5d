"""Prefixes -> codes of pictures and clips, well-formed whatever the model says.

The grid decides the structure, as in Emu3's code: after w codes comes EOL, after h rows EOF, and only codes are ever
drawn, from the vision slice of the head. Structural tokens ride along with the code before them instead of costing a
forward pass of their own. Classifier-free guidance runs the sequence without caption beside each prompt, in one batch,
and mixes their last hidden states: scores are linear in them, so the head is computed once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tokenmill.tokenizer.sequence import SequenceLayout
from tokenmill.training.sampling.batches import Count
from tokenmill.training.sampling.choose import Choice, noise
from tokenmill.training.sampling.decoder import Decoder, Product, Stream

NO_TEXT = np.empty(0, np.int32)


@dataclass(frozen=True)
class Grid:
    """Rows and columns of codes; of a clip also its latent frames `t`, and the frame rate of what they stand for."""

    h: int
    w: int
    t: int | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        if min(self.h, self.w, 1 if self.t is None else self.t) < 1 or (self.t is None) != (self.fps is None):
            raise ValueError(f"{self}: give positive sizes, and to a clip both t and fps")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.h, self.w) if self.t is None else (self.t, self.h, self.w)

    @property
    def num_codes(self) -> int:
        return (self.t or 1) * self.h * self.w


@dataclass(frozen=True)
class Wanted:
    """A medium to draw: its caption and grid, the seed of its random numbers, and the latent frames (t0, h, w) that it
    begins with.
    """

    caption: str
    grid: Grid
    seed: int
    given: np.ndarray | None = None

    @property
    def num_given(self) -> int:
        return 0 if self.given is None else self.given.size

    @property
    def num_drawn(self) -> int:
        return self.grid.num_codes - self.num_given


def prefix(layout: SequenceLayout, caption: str | None, wanted: Wanted) -> np.ndarray:
    """What precedes the first code that is drawn: int32 (N,)."""
    grid, caption_ids = wanted.grid, layout.caption_ids(caption)
    begin = layout.prefix(caption_ids, grid.h, grid.w, grid.t, grid.fps)
    if wanted.given is None:
        return begin
    given = layout.build(wanted.given, NO_TEXT, grid.fps).ids
    head = layout.prefix(NO_TEXT, grid.h, grid.w, len(wanted.given), grid.fps)
    return np.concatenate([begin, given[len(head) : -2]])


def num_tokens(layout: SequenceLayout, wanted: Wanted) -> int:
    """Length of the whole sequence."""
    grid = wanted.grid
    medium = layout.num_medium_tokens(grid.h, grid.w, grid.t, grid.fps)
    return len(layout.caption_ids(wanted.caption)) + medium


def draw_codes(
    decoder: Decoder, head: Product, layout: SequenceLayout, wanted: Sequence[Wanted], choice: Choice, count: Count
) -> np.ndarray:
    """Codes int64 (B, *grid) of media of one grid that begin with as many codes; `head` is the head's vision slice."""
    grid, device, v = wanted[0].grid, decoder.device, layout.vocabulary
    captions: list[tuple[Wanted, str | None]] = [(each, each.caption) for each in wanted]
    if is_guided := choice.guidance != 1:
        captions += [(each, None) for each in wanted]
    prefixes = [prefix(layout, caption, each) for each, caption in captions]
    first, num_codes = wanted[0].num_given, grid.num_codes
    structure = grid.h * (grid.t or 1) + (grid.t or 1)
    stream = Stream(decoder, prefixes, num_codes - first + structure, v.pad)
    noise_BN = torch.stack([noise(each.seed, each.caption, num_codes) for each in wanted]).to(device)
    codes_BN = torch.empty(len(wanted), num_codes, dtype=torch.int64, device=device)
    if first:
        codes_BN[:, :first] = torch.from_numpy(
            np.stack([np.ravel(each.given) for each in wanted if each.given is not None])
        )
    tails = [torch.tensor(tail, device=device).expand(len(prefixes), -1) for tail in ([v.eol], [v.eol, v.eof])]
    hidden_RD = stream.prefill()
    for n in range(first, num_codes):
        if is_guided:
            with_caption, free = hidden_RD.float().chunk(2)
            hidden_RD = torch.lerp(free, with_caption, choice.guidance).to(head.weight.dtype)
        codes_B = choice.pick(head(hidden_RD), noise_BN[:, n])
        codes_BN[:, n] = codes_B
        count.step(len(wanted))
        if n + 1 == num_codes:
            break
        ids_RK = (codes_B + v.vision_offset).repeat(1 + is_guided)[:, None]
        if (n + 1) % grid.w == 0:
            ids_RK = torch.cat([ids_RK, tails[(n + 1) % (grid.h * grid.w) == 0]], dim=1)
        hidden_RD = stream.feed(ids_RK)
    return codes_BN.reshape(len(wanted), *grid.shape).cpu().numpy()
