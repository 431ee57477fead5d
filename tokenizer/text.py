"""Captions -> text ids: a `transformers` tokenizer by name or path, or a byte-level BPE trained on the corpus.

Whichever it is, it ends up with Emu3's eight structural tokens under Emu3's names, so that one sequence layout serves a
toy vocabulary of 512 ids and the published one of 151,854. Text of a corpus is data: a caption that spells
"<|image end|>" is encoded as ordinary characters, never as the token.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

# Role -> string, in the order in which Emu3's vocabulary holds them.
SPECIAL_STRINGS = {
    "pad": "<|endoftext|>",
    "eol": "<|extra_200|>",  # end of a row of codes
    "eof": "<|extra_201|>",  # end of a (latent) frame
    "bos": "<|extra_203|>",
    "eos": "<|extra_204|>",
    "sot": "<|image token|>",  # codes start here
    "sov": "<|image start|>",
    "eov": "<|image end|>",
}
_BAR_AFTER_BRACKET = re.compile(r"(?<=<)(?=\|)")


def train_text_tokenizer(captions: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE of at most `vocab_size` ids, the specials included. The same captions give the same ids.

    Every digit stays a token of its own, as in Emu3's vocabulary: "64*64" is five tokens, so a sequence's length
    follows from its grid. Raises ValueError when `vocab_size` cannot hold the 256 bytes and the specials.
    """
    smallest = 256 + len(SPECIAL_STRINGS)
    if vocab_size < smallest:
        raise ValueError(f"text_vocab_size = {vocab_size}: bytes and special tokens alone take {smallest}; raise it")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_STRINGS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer)
    return _with_specials(PreTrainedTokenizerFast(tokenizer_object=backend))


def load_text_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of that hub name or local folder; Emu3's special tokens are appended where it lacks them.

    Raises ValueError when it cannot be loaded without running code from the hub, which is never done.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"text_tokenizer = {str(name)!r} cannot be loaded: {error}; name a folder or a hub id"
        ) from error
    return _with_specials(tokenizer)


def _with_specials(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    known = tokenizer.get_vocab()
    missing = [text for text in SPECIAL_STRINGS.values() if text not in known]
    if missing:
        tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = SPECIAL_STRINGS["pad"]
    return tokenizer


def encode_captions(tokenizer: PreTrainedTokenizerBase, captions: Sequence[str]) -> list[np.ndarray]:
    """int32 ids of each caption, without BOS or EOS; special strings in a caption are plain text."""
    if not captions:
        return []
    # split_special_tokens leaves added tokens alone that are not marked special, such as Emu3's visual tokens
    pieces = [_BAR_AFTER_BRACKET.split(caption) for caption in captions]
    flat = list(chain.from_iterable(pieces))
    encoded = iter(tokenizer(flat, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    return [np.array(list(chain.from_iterable(next(encoded) for _ in parts)), np.int32) for parts in pieces]
