"""Prefixes -> the words that follow them, up to EOS: captions of media, answers, texts that go on."""

from collections.abc import Sequence

import numpy as np
import torch

from tokenmill.tokenizer.sequence import SequenceLayout
from tokenmill.training.sampling.batches import Count
from tokenmill.training.sampling.choose import Choice, noise
from tokenmill.training.sampling.decoder import Decoder, Product, Stream

_LOOKS_EVERY = {"cpu": 1}  # steps, whether all have ended
_OTHERS_LOOK_EVERY = 16  # a device is waited for


def write_ids(
    decoder: Decoder,
    head: Product,
    layout: SequenceLayout,
    prefixes: Sequence[np.ndarray],
    streams: Sequence[tuple[int, str]],
    choice: Choice,
    max_tokens: int,
    may_be_empty: bool,
    count: Count,
) -> list[list[int]]:
    """Ids of text after each prefix, without the EOS that ended it, `max_tokens` at most. `head` is the head's text
    slice; `streams`: the seed and the name of each sequence's random numbers. `may_be_empty`: the first may be EOS.
    """
    device, v = decoder.device, layout.vocabulary
    stream = Stream(decoder, list(prefixes), max_tokens, v.pad)
    forbidden = torch.tensor([token for token in v.special_ids if token != v.eos], device=device)
    noise_BN = torch.stack([noise(seed, name, max_tokens) for seed, name in streams]).to(device)
    ids_BN = torch.full((len(prefixes), max_tokens), v.eos, device=device)
    has_ended = torch.zeros(len(prefixes), dtype=torch.bool, device=device)
    look_every = _LOOKS_EVERY.get(device.type, _OTHERS_LOOK_EVERY)
    hidden_BD = stream.prefill()
    for n in range(max_tokens):
        scores = head(hidden_BD).index_fill_(1, forbidden, float("-inf"))
        if n == 0 and not may_be_empty:
            scores[:, v.eos] = float("-inf")
        ids_B = choice.pick(scores, noise_BN[:, n]).masked_fill_(has_ended, v.eos)
        has_ended = has_ended | (ids_B == v.eos)
        ids_BN[:, n] = ids_B
        count.step(len(prefixes))
        if n + 1 == max_tokens or ((n + 1) % look_every == 0 and bool(has_ended.all())):
            count.skip((max_tokens - n - 1) * len(prefixes))
            break
        hidden_BD = stream.feed(ids_B[:, None])
    rows = ids_BN.tolist()
    return [row[: row.index(v.eos)] if v.eos in row else row for row in rows]
