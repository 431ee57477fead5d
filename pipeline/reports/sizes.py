"""Sizes and lengths as a person says them -> pixels and latent frames that a model can draw."""

from tokenmill.pipeline.phases import Sample
from tokenmill.storage.errors import UserError
from tokenmill.tokenizer import geometry
from tokenmill.tokenizer.sequence import FRAMES_PER_LATENT

Size = tuple[int, int]  # width and height in pixels


class SampleError(UserError, ValueError):
    """A model cannot make what is asked for; the message says why, and what to do."""


def size_of(text: str, how: Sample, factor: int) -> Size:
    """'96x64' in pixels, or an aspect such as '3:2' at the area of `how`'s grid; `factor`: pixels of a code's side.

    Raises SampleError.
    """
    given, mark, other = text.partition(":" if ":" in text else "x")
    if not (given.isdecimal() and other.isdecimal() and int(given) and int(other)):
        raise SampleError(f"size {text!r}: give pixels as 96x64, or an aspect as 3:2")
    width, height = int(given), int(other)
    if mark == ":":
        aspect = max(width, height) / min(width, height)
        return geometry.fit_area(width, height, how.grid_h * how.grid_w * factor**2, factor, aspect)
    if width % factor or height % factor:
        near = "x".join(str(max(1, round(side / factor)) * factor) for side in (width, height))
        raise SampleError(f"size {text}: sides must be multiples of {factor} px, such as {near}")
    return width, height


def num_latent(seconds: float, fps: float) -> int:
    """Latent frames, of 4 frames each, nearest to so many seconds. Raises SampleError for less than one."""
    count = round(seconds * fps / FRAMES_PER_LATENT)
    if count < 1:
        least = FRAMES_PER_LATENT / fps
        raise SampleError(
            f"{seconds:g} s: {FRAMES_PER_LATENT} frames are one grid of codes; give {least:.2g} s or more"
        )
    return count
