"""What models are given: held-out documents, prompts, questions; media as tokenizing reads and encodes them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.reports.media_file import read_medium
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer
from tokenmill.training.evaluation.losses import Document
from tokenmill.training.evaluation.subject import Question

COLUMNS = ["media_id", "kind", "codes", "grid_t", "grid_h", "grid_w", "fps", "caption"]  # of `tokens`, for `of_row`


@dataclass(frozen=True)
class Seen:
    """A document. `picture`: uint8 (H, W, 3) RGB, the middle frame of a clip; null where codes alone are known."""

    name: str
    document: Document
    picture: np.ndarray | None = None

    @property
    def caption(self) -> str | None:
        """What is written of a medium."""
        return None if self.document.codes is None else self.document.text


@dataclass(frozen=True)
class Asked:
    """A question, and the medium that it is about."""

    question: Question
    seen: Seen | None

    @classmethod
    def of(cls, text: str, true: str, seen: Seen | None) -> "Asked":
        """A question with its true answer."""
        return cls(Question(text, true, None if seen is None else seen.document), seen)


@dataclass
class Given:
    """What each model is asked on, and where it comes from."""

    prompts: list[str] = field(default_factory=list)
    prompts_from: str = ""
    held_out: list[Seen] = field(default_factory=list)
    held_out_from: str = ""
    questions: list[Asked] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def media(self) -> list[Seen]:
        """Held-out pictures and clips."""
        return [each for each in self.held_out if each.document.codes is not None]


class Codec:
    """The config's vision tokenizer. Raises TokenizerLoadError."""

    def __init__(self, config: RunConfig, device: str):
        self._frames = config.tokenize.frames
        self.device = device
        self._tokenizer = VisionTokenizer.load(config.tokenize.model, device, config.tokenize.dtype)
        self.codebook_size, self.codes_clips = self._tokenizer.codebook_size, self._tokenizer.codes_clips

    def read(self, path: Path, caption: str | None = None) -> Seen | None:
        """A file of a picture or video; null for a video that the tokenizer codes not. Raises MediaFileError."""
        frames, fps = read_medium(path, self._frames, self._tokenizer.spatial_factor)
        if fps is None:
            codes = self._tokenizer.encode_images(frames)[0]
        elif self.codes_clips:
            codes = self._tokenizer.encode_clips(frames[None])[0]
        else:
            return None
        return Seen(path.name, Document(codes, fps, caption), frames[len(frames) // 2])

    def pixels(self, codes: np.ndarray) -> list[np.ndarray]:
        """Codes (N, h, w) -> uint8 (H, W, 3) RGB of each."""
        return list(self._tokenizer.decode_images(codes))


def of_row(row: dict[str, Any]) -> Seen:
    """A kept row of `tokens` with COLUMNS."""
    if row["kind"] == "text":
        return Seen(row["media_id"], Document(None, None, row["caption"]))
    codes = np.array(row["codes"], np.int64).reshape([row[f"grid_{axis}"] for axis in "thw"])
    is_clip = row["kind"] == "video"
    return Seen(row["media_id"], Document(codes if is_clip else codes[0], row["fps"], row["caption"]))
