"""Codes and caption -> one token sequence in Emu3's layout, and back; a text document -> BOS text EOS.

    generation order      BOS caption SOV meta SOT  row EOL ... row EOL EOF  EOV EOS
    understanding order   BOS SOV meta SOT  row EOL ... row EOL EOF  EOV caption EOS
    text document         BOS text EOS

An EOL follows every row, the last one too, and an EOF every latent frame (Emu3 code; 64x64 codes make 4,169 tokens from
SOV to EOV). Understanding moves the caption behind the medium (Emu3 paper 3.1). `meta` is plain text: "h*w", in codes,
for an image. For video the paper names resolution, frame rate and duration, but no string was ever published; ours is
"h*w*t 8fps 2s": rows, columns and latent frames of codes, then frame rate and duration of the frames behind them.
Without a caption a sequence is unconditional, which classifier-free guidance needs.

Every token has a kind. The loss reports captions, images, videos and text documents apart, and gives text weight 1
and all else the vision weight (Emu3: 0.5; which tokens it covered is unpublished): what is not text belongs to the
medium or follows from its grid, so it deserves no more than the codes. What is neither text nor code is a kind of its
own, structure, because its loss is almost zero and would flatter that of the codes. The EOS of a text document, and of
a caption that stands last, is text: no grid says where it comes, so the model learns it as it learns words.
"""

import re
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from transformers import PreTrainedTokenizerBase

from tokenmill.tokenizer.text import encode_captions
from tokenmill.tokenizer.vocabulary import Vocabulary

FRAMES_PER_LATENT = 4

_IMAGE_META = re.compile(r"(\d+)\*(\d+)")
_VIDEO_META = re.compile(r"(\d+)\*(\d+)\*(\d+) ([\d.]+)fps [\d.]+s")
_NO_TEXT = np.empty(0, np.int32)


class Kind(IntEnum):
    """What a token stands for."""

    TEXT = 0  # the caption, an answer; the EOS of one that stands last
    IMAGE = 1  # codes of an image
    VIDEO = 2  # codes of a video
    STRUCTURE = 3  # BOS, EOS, SOV, meta, SOT, EOL, EOF, EOV
    DOCUMENT = 4  # a text document, its EOS too
    PROMPT = 5  # a question: nobody is to learn to ask it


@dataclass(frozen=True)
class Sequence:
    """`ids` int32 (N,) and `kinds` uint8 (N,), one `Kind` per token."""

    ids: np.ndarray
    kinds: np.ndarray


@dataclass(frozen=True)
class Parsed:
    """What a sequence says: `codes` int64, (h, w) or (t, h, w), with `fps` for video; the caption's ids and place."""

    codes: np.ndarray
    fps: float | None
    caption_ids: np.ndarray
    is_caption_last: bool


def meta_text(grid_h: int, grid_w: int, grid_t: int | None = None, fps: float | None = None) -> str:
    """The plain text between SOV and SOT. `grid_t` and `fps` are for video, both or neither.

    Raises ValueError for a video without a frame rate.
    """
    if grid_t is None:
        return f"{grid_h}*{grid_w}"
    if fps is None or fps <= 0:
        raise ValueError(f"a video of {grid_t} latent frames needs its frame rate, not {fps}; tokenize it again")
    seconds = grid_t * FRAMES_PER_LATENT / fps
    return f"{grid_h}*{grid_w}*{grid_t} {round(fps, 3):g}fps {round(seconds, 2):g}s"


class SequenceLayout:
    """Builds and reads sequences for one text tokenizer and its vocabulary."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary):
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self._meta_ids: dict[str, np.ndarray] = {}

    def caption_ids(self, caption: str | None) -> np.ndarray:
        """int32 ids of a caption; none for a null or blank one."""
        return encode_captions(self.tokenizer, [caption])[0] if caption and caption.strip() else _NO_TEXT

    def _meta(self, text: str) -> np.ndarray:
        if text not in self._meta_ids:
            self._meta_ids[text] = encode_captions(self.tokenizer, [text])[0]
        return self._meta_ids[text]

    def num_medium_tokens(self, grid_h: int, grid_w: int, grid_t: int | None = None, fps: float | None = None) -> int:
        """Length of the sequence without its caption; `grid_t` and `fps` for video only."""
        num_frames = 1 if grid_t is None else grid_t
        meta = self._meta(meta_text(grid_h, grid_w, grid_t, fps))
        return 5 + len(meta) + num_frames * (grid_h * (grid_w + 1) + 1)

    def prefix(
        self, caption_ids: np.ndarray, grid_h: int, grid_w: int, grid_t: int | None = None, fps: float | None = None
    ) -> np.ndarray:
        """BOS caption SOV meta SOT: what precedes the first code in generation order. int32 (N,)."""
        v = self.vocabulary
        meta = self._meta(meta_text(grid_h, grid_w, grid_t, fps))
        return np.concatenate([[v.bos], caption_ids, [v.sov], meta, [v.sot]]).astype(np.int32)

    def build(
        self, codes: np.ndarray, caption_ids: np.ndarray, fps: float | None = None, is_caption_last: bool = False
    ) -> Sequence:
        """The sequence of an image, codes (h, w), or a video, codes (t, h, w) with its `fps`. Codes: any integer dtype.

        Raises ValueError for codes outside the codebook.
        """
        v = self.vocabulary
        if codes.size == 0 or codes.min() < 0 or codes.max() >= v.codebook_size:
            raise ValueError(f"codes of shape {codes.shape} do not fit a codebook of {v.codebook_size}; tokenize again")
        is_video = codes.ndim == 3
        grid_t, grid_h, grid_w = codes.shape if is_video else (1, *codes.shape)
        rows = np.full((grid_t, grid_h, grid_w + 1), v.eol, np.int32)
        rows[:, :, :grid_w] = codes.reshape(grid_t, grid_h, grid_w)
        rows[:, :, :grid_w] += v.vision_offset
        frames = np.full((grid_t, grid_h * (grid_w + 1) + 1), v.eof, np.int32)
        frames[:, :-1] = rows.reshape(grid_t, -1)
        medium = frames.ravel()

        head = self.prefix(
            _NO_TEXT if is_caption_last else caption_ids, grid_h, grid_w, grid_t if is_video else None, fps
        )
        tail = np.concatenate([[v.eov], caption_ids if is_caption_last else _NO_TEXT, [v.eos]]).astype(np.int32)
        ids = np.concatenate([head, medium, tail])
        kinds = np.full(len(ids), Kind.STRUCTURE, np.uint8)
        kinds[ids >= v.vision_offset] = Kind.VIDEO if is_video else Kind.IMAGE
        start = len(head) + len(medium) + 1 if is_caption_last else 1
        kinds[start : start + len(caption_ids) + (is_caption_last and len(caption_ids) > 0)] = Kind.TEXT
        return Sequence(ids, kinds)

    def build_text(self, text_ids: np.ndarray, is_first: bool, is_last: bool) -> Sequence:
        """The sequence of a text document, or of one of its pieces: BOS before the first, EOS after the last."""
        v = self.vocabulary
        begin, end = [v.bos] if is_first else [], [v.eos] if is_last else []
        ids = np.concatenate([begin, text_ids, end]).astype(np.int32)
        kinds = np.full(len(ids), Kind.DOCUMENT, np.uint8)
        kinds[: len(begin)] = Kind.STRUCTURE
        return Sequence(ids, kinds)

    def parse(self, ids: np.ndarray) -> Parsed:
        """The inverse of `build`. Raises ValueError that says where the sequence leaves the layout."""
        v = self.vocabulary
        if len(ids) < 2 or ids[0] != v.bos or ids[-1] != v.eos:
            raise ValueError(f"a sequence starts with BOS ({v.bos}) and ends with EOS ({v.eos}); this one does not")
        sov, sot, eov = (self._only(ids, role) for role in ("sov", "sot", "eov"))
        if not sov < sot < eov:
            raise ValueError(f"SOV, SOT, EOV stand at {sov}, {sot}, {eov}; they must come in this order")
        grid_t, grid_h, grid_w, fps = self._read_meta(ids[sov + 1 : sot])
        num_frames = grid_t or 1
        medium = ids[sot + 1 : eov]
        if len(medium) != num_frames * (grid_h * (grid_w + 1) + 1):
            raise ValueError(
                f"{len(medium)} tokens between SOT and EOV do not make {num_frames} x {grid_h} x {grid_w} codes"
            )
        frames = medium.reshape(num_frames, -1)
        rows = frames[:, :-1].reshape(num_frames, grid_h, grid_w + 1)
        codes = rows[..., :-1].astype(np.int64) - v.vision_offset
        if (frames[:, -1] != v.eof).any() or (rows[..., -1] != v.eol).any():
            raise ValueError("an EOL must end every row and an EOF every frame of codes")
        if codes.min() < 0 or codes.max() >= v.codebook_size:
            raise ValueError("there are ids that are not codes between SOT and EOV")
        before, after = ids[1:sov], ids[eov + 1 : -1]
        if len(before) and len(after):
            raise ValueError("there is text before SOV and after EOV; a sequence has one caption")
        caption_ids = np.concatenate([before, after]).astype(np.int32)
        if (caption_ids >= v.vision_offset).any() or np.isin(caption_ids, v.special_ids).any():
            raise ValueError("there are codes or structural tokens in the caption")
        return Parsed(codes if grid_t else codes[0], fps, caption_ids, len(after) > 0)

    def _only(self, ids: np.ndarray, role: str) -> int:
        places = np.flatnonzero(ids == getattr(self.vocabulary, role))
        if len(places) != 1:
            raise ValueError(f"a sequence has one {role.upper()}; this one has {len(places)}")
        return int(places[0])

    def _read_meta(self, ids: np.ndarray) -> tuple[int | None, int, int, float | None]:
        """(grid_t, grid_h, grid_w, fps); grid_t and fps None for an image."""
        text = str(self.tokenizer.decode(ids.tolist()))
        if found := _IMAGE_META.fullmatch(text):
            return None, int(found[1]), int(found[2]), None
        if found := _VIDEO_META.fullmatch(text):
            return int(found[3]), int(found[1]), int(found[2]), float(found[4])
        raise ValueError(f"{text!r} between SOV and SOT is neither 'h*w' nor 'h*w*t 8fps 2s'")
