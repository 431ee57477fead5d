"""Bytes of an image file -> RGB pixels as a viewer shows them, from a header that was checked first.

Orientation (EXIF, or AVIF's irot) is applied, transparency is composited on white, 16-bit greys are scaled by 257, CMYK
is converted; colour profiles are not applied. Of a stereo pair (MPO) or a paged TIFF the first picture is taken; an
animation is rejected. The pixel count is checked before a pixel is decoded: a 44-byte GIF can claim 4.3 gigapixels.
"""

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from tokenmill.stages.table.rows import RowError, words

_ANIMATED_FORMATS = {"GIF", "WEBP", "PNG", "AVIF"}  # elsewhere further frames are pages, stereo partners or sizes
_LUMA_TABLE_SUM = 3688  # of the JPEG standard's table K.1, which is quality 50
_WHITE = (255, 255, 255, 255)
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_TURNING = {_TRANSPOSITIONS[orientation] for orientation in (5, 6, 7, 8)}


@contextmanager
def _guarded(max_pixels: int) -> Iterator[None]:
    """Run PIL with its own bomb check at `max_pixels`, and turn whatever it raises into `RowError`.

    Its decoders answer damaged bytes with a dozen exception types (SyntaxError, struct.error, KeyError...), hence the
    broad except around nothing but calls of PIL.
    """
    # PIL warns at its limit and refuses at twice that.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, -(-max_pixels // 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except RowError:
        raise
    except Image.DecompressionBombError as error:
        raise RowError("too_many_pixels", words(error)) from error
    except Exception as error:
        raise RowError("corrupt", words(error)) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _muted(max_pixels: int) -> Iterator[None]:
    """`_guarded`, with file descriptor 2 sent nowhere: libtiff prints its complaints about damage straight to it."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with _guarded(max_pixels):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # a damaged EXIF block is no reason to lose the picture
        return 1


def _jpeg_quality(tables: Any) -> float | None:
    """The quality for which libjpeg would write a quantization table of this sum, 1..100."""
    if not isinstance(tables, dict) or 0 not in tables:
        return None
    scale = 100 * sum(tables[0]) / _LUMA_TABLE_SUM
    return float(min(100.0, max(1.0, (200 - scale) / 2 if scale <= 100 else 5000 / scale)))


class Picture:
    """An image file whose header has been read; `width_px` and `height_px` are as shown, `num_frames` as stored.
    `jpeg_quality` is 1..100, null for other formats.

    Raises `RowError`: corrupt, too_many_pixels, animated.
    """

    def __init__(self, content: bytes | memoryview, max_pixels: int):
        content = memoryview(content).cast("B")
        self._max_pixels = max_pixels
        self._transposition: Image.Transpose | None = None
        self._guard = _muted if content[:2] in (b"II", b"MM") else _guarded  # TIFF
        with self._guard(max_pixels):
            self._image = Image.open(io.BytesIO(content))
            self.num_frames: int = getattr(self._image, "n_frames", 1)
        self.jpeg_quality = _jpeg_quality(getattr(self._image, "quantization", None))
        self.width_px, self.height_px = self._image.size
        known = {"width_px": self.width_px, "height_px": self.height_px, "num_frames": self.num_frames}
        if self.width_px * self.height_px > max_pixels:
            detail = f"{self.width_px} x {self.height_px} px; the limit is {max_pixels} px"
            raise RowError("too_many_pixels", detail, **known)
        if self.num_frames > 1 and self._image.format in _ANIMATED_FORMATS:
            raise RowError("animated", f"{self.num_frames} frames", **known)
        try:
            with self._guard(max_pixels):
                if self._image.format == "PNG":
                    # Its orientation may stand behind the pixels, so PIL decodes them to find it; a failure in there
                    # would pass for a bad EXIF block, and the next load() returns the half picture without a word.
                    self._image.load()
                self._transposition = _TRANSPOSITIONS.get(_orientation(self._image))
        except RowError as rejected:
            rejected.columns.update(known)
            raise
        if self._transposition in _TURNING:
            self.width_px, self.height_px = self.height_px, self.width_px

    def rgb(self, at_least_px: int | None = None) -> np.ndarray:
        """uint8 (H, W, 3) RGB, 0..255. With `at_least_px`, a JPEG is decoded at the smallest of 1/1, 1/2, 1/4, 1/8 of
        its size whose shorter edge still has that many pixels. Decodes: call it once.

        Raises `RowError`: corrupt, unsupported_format (pixels without a defined range, such as floats).
        """
        image = self._image
        with self._guard(self._max_pixels):
            if at_least_px is not None:
                image.draft(None, (at_least_px, at_least_px))
            image.load()
            shown = _flattened(image)
            if self._transposition is not None:
                shown = shown.transpose(self._transposition)
            return np.asarray(shown)


def _sixteen_bit(image: Image.Image) -> Image.Image:
    """Mode I;16 (and I, which some 16-bit files open as) -> L or, with a transparent grey, LA."""
    grey = np.asarray(image)
    if grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
        raise RowError("unsupported_format", "32-bit pixels have no defined range")
    narrow = Image.fromarray(((grey.astype(np.uint32) + 128) // 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        narrow.putalpha(Image.fromarray(np.where(grey == transparent, 0, 255).astype(np.uint8)))
    return narrow


def _flattened(image: Image.Image) -> Image.Image:
    """Any mode -> RGB; transparent areas become white."""
    if image.mode == "F":
        raise RowError("unsupported_format", "float pixels have no defined range")
    if image.mode.startswith("I"):
        image = _sixteen_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
