"""One id space for text and vision: the ids of the structural tokens, and where the codes begin.

With Emu3's own tokenizer the codes are its `<|visual token 000000|>` and so on (ids 151,854 to 184,621 of 184,622);
with any other they follow the text ids. Either way an id is `code + vision_offset`: no string is ever made of a code,
which costs Emu3's loader 20 ms for an image (Emu3 code, datasets.py).
"""

from pathlib import Path

from pydantic import Field, model_validator
from transformers import PreTrainedTokenizerBase

from tokenmill import storage
from tokenmill.storage.identity import Config
from tokenmill.tokenizer.text import SPECIAL_STRINGS

FILE_NAME = "vocabulary.json"


def visual_string(code: int) -> str:
    return f"<|visual token {code:06d}|>"


class Vocabulary(Config):
    """Ids of the structural tokens and of the codes."""

    pad: int = Field(ge=0)
    eol: int = Field(ge=0)
    eof: int = Field(ge=0)
    bos: int = Field(ge=0)
    eos: int = Field(ge=0)
    sot: int = Field(ge=0)
    sov: int = Field(ge=0)
    eov: int = Field(ge=0)
    vision_offset: int = Field(gt=0, description="Id of code 0; every text id is smaller.")
    codebook_size: int = Field(gt=0, description="Number of codes.")

    @model_validator(mode="after")
    def _apart(self) -> "Vocabulary":
        ids = self.special_ids
        if len(set(ids)) < len(ids) or max(ids) >= self.vision_offset:
            raise ValueError(
                f"special ids {ids} must differ from each other and from the codes; rebuild the vocabulary"
            )
        return self

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, codebook_size: int) -> "Vocabulary":
        """The vocabulary of a text tokenizer (`load_text_tokenizer`, `train_text_tokenizer`) and a codebook.

        Raises ValueError when the tokenizer has visual tokens of its own, but not `codebook_size` of them in a row.
        """
        known = tokenizer.get_vocab()
        offset = known.get(visual_string(0))
        if offset is None:
            offset = len(tokenizer)
        else:
            last = known.get(visual_string(codebook_size - 1))
            if last != offset + codebook_size - 1 or visual_string(codebook_size) in known:
                raise ValueError(
                    f"the text tokenizer's visual tokens do not fit a codebook of {codebook_size}; "
                    "use the vision tokenizer that it was made for, or another text tokenizer"
                )
        specials = {role: known[text] for role, text in SPECIAL_STRINGS.items()}
        return cls(**specials, vision_offset=offset, codebook_size=codebook_size)

    @property
    def special_ids(self) -> list[int]:
        """Ids of the structural tokens."""
        return [getattr(self, role) for role in SPECIAL_STRINGS]

    @property
    def size(self) -> int:
        """Number of ids, text and vision together."""
        return self.vision_offset + self.codebook_size

    def save(self, folder: Path) -> None:
        """Write `vocabulary.json` into a local folder, beside the tokenizer."""
        storage.write_json(str(folder / FILE_NAME), self.model_dump())

    @classmethod
    def load(cls, folder: Path) -> "Vocabulary":
        """Read `vocabulary.json` of a local folder. Raises FileNotFoundError."""
        return cls.model_validate(storage.read_json(str(folder / FILE_NAME)))
