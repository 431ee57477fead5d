"""Good pictures -> a folder of files that a curation must not let through, each with the reason why.

One file or two per defect seen in real crawls: what cannot be decoded, what is not what its name says, what is no
picture of anything, and what is there twice. The demo shows every one of them as a counted reject.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tokenmill.pipeline.reports.video_file import write_video

_TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs. "
_FPS = 12


def _text_page(start: int) -> Image.Image:
    page = Image.new("RGB", (192, 256), "white")
    words = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=10)
    for line in range(18):
        words.text((12, 12 + 13 * line), (_TEXT * 8)[start + 31 * line :][:31], fill="black", font=font)
    return page


def _encoded(picture: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


def write_broken(
    folder: Path, corpus: list[Path], fresh: list[Image.Image], rng: np.random.Generator
) -> dict[str, str]:
    """Write the bad files into `folder`; return {file name: reason}.

    `corpus` names two PNG files that stand in the corpus already (they get an exact and a near duplicate); `fresh` are
    six or more pictures that do not, so that what is made of them is bad for its own defect only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reasons: dict[str, str] = {}

    def add(name: str, reason: str, content: bytes) -> None:
        (folder / name).write_bytes(content)
        reasons[name] = reason

    for index in (0, 1):
        add(f"blurred_{index}.png", "blurred", _encoded(fresh[index].filter(ImageFilter.GaussianBlur(6)), "PNG"))
        add(f"tiny_{index}.png", "too_small", _encoded(fresh[index].resize((16, 16), Image.Resampling.BOX), "PNG"))
        add(f"grey_{index}.png", "monochrome", _encoded(fresh[index].convert("L").convert("RGB"), "PNG"))
        add(f"text_page_{index}.png", "text", _encoded(_text_page(17 * index), "PNG"))

    add("exact_duplicate.png", "duplicate", corpus[0].read_bytes())
    with Image.open(corpus[1]) as original:
        add("near_duplicate.jpg", "near_duplicate", _encoded(original, "JPEG", quality=90))

    png, jpeg = _encoded(fresh[2], "PNG"), _encoded(fresh[3], "JPEG", quality=95)
    add("truncated.png", "unreadable", png[: len(png) // 2])
    add("truncated.jpg", "unreadable", jpeg[: len(jpeg) // 2])
    add("text_inside.jpg", "unreadable", b"<html><body>404 Not Found</body></html>\n")
    add("empty.png", "empty_file", b"")
    add("jpeg_inside.png", "wrong_extension", _encoded(fresh[4], "JPEG", quality=95))
    add("animated.gif", "animated", _encoded(fresh[4], "GIF", save_all=True, append_images=fresh[5:6], duration=200))

    still = np.asarray(fresh[5].convert("RGB"))
    write_video(folder / "static.mp4", [still] * 24, _FPS)
    write_video(folder / "flashing.mp4", [np.full_like(still, 255 * (index % 2)) for index in range(24)], _FPS)
    reasons |= {"static.mp4": "static", "flashing.mp4": "flashing"}
    video = (folder / "static.mp4").read_bytes()
    add("truncated.mp4", "unreadable", video[: len(video) // 2])
    add("garbage.mp4", "unreadable", b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isommp41" + rng.bytes(4096))
    return reasons
