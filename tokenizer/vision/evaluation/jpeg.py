"""A picture and a number of bits -> the best JPEG of at most so many: what a tokenizer has to beat.

Counted is the coded picture alone (the scan), not the file's header of about 600 bytes: its tables can be agreed on
once, as a codebook is. Quality is searched in 1..95, baseline, 4:2:0, standard Huffman tables. JPEG spends 0.13 bits a
pixel at least, a code of 8 x 8 px and 12 bits is 0.19: so the picture may be shrunk first and enlarged after. The
factor with the best PSNR counts; `is_forced` says where even quality 1 of the whole picture took more bits.
"""

import io
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from tokenmill.tokenizer.vision.evaluation.metrics import psnr

_MAX_QUALITY = 95
_FACTORS = (1, 1.5, 2, 3, 4, 6, 8, 16)


@dataclass(frozen=True)
class Jpeg:
    """A decoded JPEG, uint8 (H, W, 3), its bits, its quality, and by which factor it was shrunk before (1: not).

    `is_forced`: it had to be, because quality 1 of the whole picture takes more bits than there are.
    """

    picture: np.ndarray
    bits: int
    quality: int
    factor: float
    is_forced: bool


def jpeg_of(picture: np.ndarray, max_bits: float) -> Jpeg:
    """The best JPEG of uint8 (H, W, 3) in at most `max_bits`; of more bits only where 1/16 of the sides takes more."""
    tried = [_at_factor(picture, factor, max_bits) for factor in _FACTORS]
    fitting = [each for each in tried if each.bits <= max_bits]
    best = max(fitting, key=lambda each: psnr(picture, each.picture)) if fitting else tried[-1]
    return replace(best, is_forced=tried[0].bits > max_bits)


def scan_bits(content: bytes) -> int:
    """Bits of the coded picture in a baseline JPEG file: what stands between the scan's header and the end marker."""
    at = 2
    while content[at + 1] != 0xDA:
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    start = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return 8 * (len(content) - 2 - start)


def _at_factor(picture: np.ndarray, factor: float, max_bits: float) -> Jpeg:
    """The highest quality that fits; quality 1 when none does."""
    height, width = picture.shape[:2]
    image = Image.fromarray(picture)
    if factor > 1:
        size = max(1, round(width / factor)), max(1, round(height / factor))
        image = image.resize(size, Image.Resampling.BICUBIC)
    low, high = 1, _MAX_QUALITY
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if scan_bits(_coded(image, middle)) <= max_bits else (low, middle - 1)
    content = _coded(image, low)
    decoded = Image.open(io.BytesIO(content)).convert("RGB")
    if factor > 1:
        decoded = decoded.resize((width, height), Image.Resampling.BICUBIC)
    return Jpeg(np.asarray(decoded), scan_bits(content), low, factor, False)


def _coded(image: Image.Image, quality: int) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality, subsampling="4:2:0")
    return content.getvalue()
