"""Pictures and clips of one size -> all figures of a vision tokenizer on them, and of JPEG at equal bits.

Bits per pixel are counted twice: nominal (log2 of the codebook for each code: codes stored as they are) and by the
codes' entropy over the set (what an entropy coder without context would take). JPEG gets the nominal bits, frame by
frame: of a clip's codes each frame gets its share. Figures are means over frames: of PSNR in dB, and of SSIM.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenmill.tokenizer.vision.evaluation.jpeg import Jpeg, jpeg_of
from tokenmill.tokenizer.vision.evaluation.metrics import codebook_use, motion_psnr, psnr, ssim
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer

if TYPE_CHECKING:  # seconds to import, which only a run with their weights need spend
    from tokenmill.tokenizer.vision.evaluation.perceptual import Fid, Lpips

_MAX_DB = 100.0  # of equal pictures, so that a mean stays finite


@dataclass(frozen=True)
class Example:
    """One medium with its reconstructions, each uint8 (T, H, W, 3), and figures to print under them."""

    name: str
    original: np.ndarray
    decoded: np.ndarray
    jpegs: list[Jpeg]
    figures: dict[str, float]


@dataclass
class Judge:
    """Takes in media of one kind and size, batch by batch; `figures()` sums up. `kind` is image or video."""

    tokenizer: VisionTokenizer
    kind: str
    side_px: int
    lpips: "Lpips | None" = None
    fid: "Fid | None" = None
    _scores: list[dict[str, float]] = field(default_factory=list)
    _codes: list[np.ndarray] = field(default_factory=list)
    _seconds: dict[str, float] = field(default_factory=lambda: {"encode": 0.0, "decode": 0.0})
    _num_frames: int = 0

    def add(self, names: list[str], originals: np.ndarray) -> list[Example]:
        """Judge a batch, uint8 (B, T, side, side, 3), T 1 for images; the examples are in the batch's order."""
        encode, decode = self._calls()
        if not self._codes:  # the first call of a size pays for memory and for choosing kernels
            decode(encode(originals[:1]))
        codes = self._timed("encode", encode, originals)
        decoded = self._timed("decode", decode, codes)
        self._codes.append(codes.reshape(-1))
        self._num_frames += len(originals) * originals.shape[1]
        max_bits = math.log2(self.tokenizer.codebook_size) * codes[0].size / originals.shape[1]
        examples = []
        for name, original, reconstruction in zip(names, originals, decoded, strict=True):
            jpegs = [jpeg_of(frame, max_bits) for frame in original]
            figures = self._judged(original, reconstruction, jpegs)
            figures["bpp_nominal"] = max_bits / self.side_px**2
            self._scores.append(figures)
            examples.append(Example(name, original, reconstruction, jpegs, figures))
        if self.fid and self.kind == "image":
            self.fid.add(originals[:, 0], decoded[:, 0])
        return examples

    def figures(self) -> dict[str, Any]:
        """What was found, by the columns' names; null where it does not apply."""
        codes, codebook_size = np.concatenate(self._codes), self.tokenizer.codebook_size
        use = codebook_use(codes, codebook_size)
        num_px = self._num_frames * self.side_px**2
        means = {name: float(np.mean([each[name] for each in self._scores])) for name in self._scores[0]}
        return {
            "kind": self.kind,
            "side_px": self.side_px,
            "num_media": len(self._scores),
            **means,
            **({"fid": self.fid.value()} if self.fid and self.kind == "image" else {}),
            **use,
            "bpp_entropy": use["bits"] * len(codes) / num_px,
            "encode_tokens_per_s": len(codes) / self._seconds["encode"],
            "decode_tokens_per_s": len(codes) / self._seconds["decode"],
        }

    def _calls(self) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]:
        """Both take and give a time axis."""
        tokenizer = self.tokenizer
        if self.kind == "video":
            return tokenizer.encode_clips, tokenizer.decode_clips
        return (
            lambda frames: tokenizer.encode_images(frames[:, 0])[:, None],
            lambda codes: tokenizer.decode_images(codes[:, 0])[:, None],
        )

    def _timed(self, name: str, call: Callable[[np.ndarray], np.ndarray], batch: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        result = call(batch)  # NumPy in and out: a GPU has finished when it returns
        self._seconds[name] += time.perf_counter() - start
        return result

    def _judged(self, original: np.ndarray, decoded: np.ndarray, jpegs: list[Jpeg]) -> dict[str, float]:
        pictures = np.stack([jpeg.picture for jpeg in jpegs])
        figures = {}
        for prefix, frames in (("", decoded), ("jpeg_", pictures)):
            pairs = list(zip(original, frames, strict=True))
            figures[f"{prefix}psnr"] = float(np.mean([min(_MAX_DB, psnr(a, b)) for a, b in pairs]))
            figures[f"{prefix}ssim"] = float(np.mean([ssim(a, b) for a, b in pairs]))
            if self.kind == "video":
                figures[f"{prefix}motion_psnr"] = min(_MAX_DB, motion_psnr(original, frames))
            if self.lpips:
                figures[f"{prefix}lpips"] = float(np.mean(self.lpips(original, frames)))
        figures["jpeg_bpp"] = float(np.mean([jpeg.bits for jpeg in jpegs])) / self.side_px**2
        figures["jpeg_quality"] = float(np.mean([jpeg.quality for jpeg in jpegs]))
        figures["jpeg_factor"] = float(np.mean([jpeg.factor for jpeg in jpegs]))
        figures["jpeg_forced_share"] = float(np.mean([jpeg.is_forced for jpeg in jpegs]))
        return figures
