"""Dialogues -> records of the index, beside those of the media that they are about."""

import hashlib
from collections import defaultdict

import numpy as np
import pyarrow as pa

from tokenmill.storage.errors import TrainingError
from tokenmill.tokenizer.dialogue import num_dialogue_tokens
from tokenmill.tokenizer.sequence import SequenceLayout
from tokenmill.training.data.dialogues import turns_of

_NAMED = 3  # media in a message
Records = dict[str, np.ndarray]


def media_key(media_id: str, piece: int = 0) -> int:
    """The entry of a medium, or of a piece of a text document, in `Index.media`."""
    name = f"{media_id}/{piece}" if piece else media_id
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


class Spoken:
    """The dialogues of a training, to be placed beside their media."""

    def __init__(self, dialogues: pa.Table, layout: SequenceLayout):
        self._ids = dialogues["media_id"].to_pylist()
        self._num_tokens = [num_dialogue_tokens(layout, turns_of(dialogues, n)) for n in range(len(dialogues))]
        self._waiting: dict[int, list[int]] = defaultdict(list)
        for number, media_id in enumerate(self._ids):
            if media_id is not None:
                self._waiting[media_key(media_id)].append(number)

    def about(self, media: Records) -> Records:
        """Records of the dialogues about media of a row group; each stands once, in the family of its medium."""
        places, numbers = [], []
        for place, key in enumerate(media["media"].tolist()):
            mine = self._waiting.pop(key, [])
            places += [place] * len(mine)
            numbers += mine
        made = {name: values[places] for name, values in media.items()}
        made["medium_tokens"] = made["medium_tokens"] - 2  # the dialogue has a BOS, and EOS
        return made | self._of(numbers)

    def of_words(self) -> list[Records]:
        """Records of those about no medium. Raises TrainingError where media were found nowhere."""
        if self._waiting:
            lacking = sorted(number for numbers in self._waiting.values() for number in numbers)
            named = ", ".join(str(self._ids[number]) for number in lacking[:_NAMED])
            raise TrainingError(
                f"data.dialogues: {len(lacking)} of {len(self._ids)} dialogues are about media without tokens "
                f"({named}{', ...' if len(lacking) > _NAMED else ''}); `tokenmill show` says what became of one: "
                "tokenize them, or take their lines out"
            )
        numbers = [number for number, media_id in enumerate(self._ids) if media_id is None]
        nothing = np.zeros(len(numbers), np.int32)
        nowhere = {"shard": nothing - 1, "row_group": nothing, "row": nothing, "piece": nothing - 1}
        blank = {"grid": np.zeros((len(numbers), 3), np.int32), "is_video": np.zeros(len(numbers), bool)}
        counts = {"medium_tokens": nothing, "text_start": nothing, "text_skip": nothing}
        mine = self._of(numbers)
        return [nowhere | blank | counts | mine | {"family": mine["media"]}]

    def _of(self, numbers: list[int]) -> Records:
        keys = [media_key(f"{self._ids[number]}#{number}") for number in numbers]
        return {
            "media": np.array(keys, np.uint64),
            "caption_tokens": np.array([self._num_tokens[number] for number in numbers], np.int32),
            "dialogue": np.array(numbers, np.int32),
        }


def without_long(parts: list[Records], context_tokens: int) -> tuple[list[Records], int]:
    """The records without dialogues that are longer than the context, and how many these are."""
    kept, num_long = [], 0
    for part in parts:
        fits = (part["dialogue"] < 0) | (part["medium_tokens"] + part["caption_tokens"] <= context_tokens)
        num_long += int((~fits).sum())
        kept.append({name: values[fits] for name, values in part.items()})
    return kept, num_long
