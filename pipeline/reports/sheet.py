"""Titled rows of captioned pictures -> one PNG to look at: originals, reconstructions, samples, video strips.

Small pictures are enlarged by a whole factor with NEAREST, to 128 px or more on the shorter side: what the model drew
shows pixel by pixel, not what a filter made of it. Texts come from corpora: control characters and all beyond ASCII
are shown escaped.
"""

import math
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tokenmill import storage
from tokenmill.storage import scratch

MIN_SIDE_PX = 128
MAX_WIDTH_PX = 1240

_MARGIN_PX = 28
_GAP_PX = 16
_BAR_PX = 4
_FONT_PX = 13
_TITLE_FONT_PX = 20
_LINE_PX = 17
_MAX_LINES = 4
_PAPER = (255, 255, 255)
_INK = (39, 39, 42)
_FAINT = (161, 161, 170)
_FRAME = (228, 228, 231)
_RIGHT = (22, 163, 74)
_WRONG = (220, 38, 38)


@dataclass(frozen=True)
class Picture:
    """A picture, uint8 (H, W, 3) RGB, its text or texts, one below the other, and whether it is right (None: nobody
    judged).
    """

    image: np.ndarray
    text: str | tuple[str, ...] = ""
    ok: bool | None = None


@dataclass(frozen=True)
class SheetSection:
    """Pictures under one title; they flow over as many lines as they need."""

    title: str
    pictures: Sequence[Picture]


def escaped(text: str) -> str:
    """`text` in printable ASCII: "a\\nb" becomes "a\\\\nb", an accented letter its number."""
    return "".join(char if 32 <= ord(char) < 127 else char.encode("unicode_escape").decode() for char in text)


def thumbnail(image_HWC: np.ndarray) -> Image.Image:
    """The picture, uint8 (H, W, 3) RGB, times the least whole factor that makes its shorter side 128 px or more.

    What would not fit the page gets a smaller factor, and is shrunk when it does not even fit as it is.
    """
    height_px, width_px = image_HWC.shape[:2]
    room_px = MAX_WIDTH_PX - 2 * _MARGIN_PX
    factor = max(1, min(math.ceil(MIN_SIDE_PX / min(height_px, width_px)), room_px // width_px))
    picture = Image.fromarray(image_HWC)
    if width_px > room_px:
        return picture.resize((room_px, max(1, height_px * room_px // width_px)), Image.Resampling.LANCZOS)
    return picture.resize((width_px * factor, height_px * factor), Image.Resampling.NEAREST)


def image_grid(images: Sequence[np.ndarray], columns: int, gap_px: int = 2) -> Image.Image:
    """Pictures, each uint8 (H, W, 3) RGB, as they are, row by row in equal cells, with white between.

    One row of a video's frames is its strip. Raises ValueError without images or with columns < 1.
    """
    if not images or columns < 1:
        raise ValueError(f"{len(images)} images in {columns} columns make no grid; give at least one of each")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    cell_h, cell_w = (max(image.shape[axis] for image in images) + gap_px for axis in (0, 1))
    grid = Image.new("RGB", (columns * cell_w - gap_px, rows * cell_h - gap_px), _PAPER)
    for index, image in enumerate(images):
        grid.paste(Image.fromarray(image), (index % columns * cell_w, index // columns * cell_h))
    return grid


def _font(size_px: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size_px)


def wrapped(text: str, width_px: int) -> list[str]:
    """At most four lines, none wider than `width_px`; a longer text ends in dots."""
    font, shown = _font(_FONT_PX), escaped(text)
    for num_chars in range(width_px // 5, 4, -1):
        lines = textwrap.wrap(shown, num_chars, max_lines=_MAX_LINES, placeholder=" ...")
        if all(font.getlength(line) <= width_px for line in lines):
            return lines
    return []


@dataclass(frozen=True)
class _Cell:
    """One thumbnail with its wrapped text."""

    image: Image.Image
    lines: list[str]
    ok: bool | None

    @property
    def height_px(self) -> int:
        bar = _BAR_PX if self.ok is not None else 0
        return self.image.height + bar + (8 + _LINE_PX * len(self.lines) if self.lines else 0)

    def paint(self, page: Image.Image, left: int, top: int) -> None:
        canvas = ImageDraw.Draw(page)
        right, bottom = left + self.image.width, top + self.image.height
        canvas.rectangle((left - 1, top - 1, right, bottom), outline=_FRAME)
        page.paste(self.image, (left, top))
        if self.ok is not None:
            canvas.rectangle((left - 1, bottom, right, bottom + _BAR_PX - 1), fill=_RIGHT if self.ok else _WRONG)
            _paint_mark(canvas, right - 13, top + 13, self.ok)
        text_top = bottom + 6 + (_BAR_PX if self.ok is not None else 0)
        for index, line in enumerate(self.lines):
            canvas.text((left, text_top + index * _LINE_PX), line, fill=_INK, font=_font(_FONT_PX))


def _paint_mark(canvas: ImageDraw.ImageDraw, x: int, y: int, ok: bool) -> None:
    """A tick or a cross on a disc around (x, y): the verdict does not hang on telling green from red."""
    canvas.ellipse((x - 10, y - 10, x + 10, y + 10), fill=_PAPER)
    canvas.ellipse((x - 8, y - 8, x + 8, y + 8), fill=_RIGHT if ok else _WRONG)
    if ok:
        canvas.line([(x - 4, y), (x - 1, y + 3), (x + 4, y - 3)], fill=_PAPER, width=2)
    else:
        canvas.line([(x - 3, y - 3), (x + 3, y + 3)], fill=_PAPER, width=2)
        canvas.line([(x - 3, y + 3), (x + 3, y - 3)], fill=_PAPER, width=2)


def _lines_of_cells(section: SheetSection) -> list[list[_Cell]]:
    """The section's pictures, as many beside each other as the page's width takes."""
    lines: list[list[_Cell]] = []
    used_px = 0
    for picture in section.pictures:
        image = thumbnail(picture.image)
        texts = (picture.text,) if isinstance(picture.text, str) else picture.text
        cell = _Cell(image, [line for text in texts for line in wrapped(text, image.width)], picture.ok)
        if not lines or used_px + image.width > MAX_WIDTH_PX - 2 * _MARGIN_PX:
            lines.append([])
            used_px = 0
        lines[-1].append(cell)
        used_px += image.width + _GAP_PX
    return lines


def _title(section: SheetSection) -> str:
    judged = [picture.ok for picture in section.pictures if picture.ok is not None]
    return escaped(section.title) + (f"  ({sum(judged)} of {len(judged)} right)" if judged else "")


def default_sheet(root: str) -> str:
    """Where `tokenmill sheet` writes unless it is told: beside the report."""
    return storage.join(storage.absolute(root), "reports", "sheet.png")


def write_picture(uri: str, draw: Callable[[Path], None]) -> None:
    """What `draw` makes of a local path, at `uri`, a file or an object; seen whole or not at all."""
    with tempfile.TemporaryDirectory(prefix="tokenmill-", dir=scratch.folder()) as folder:
        local = Path(folder) / "picture.png"
        draw(local)
        storage.write_bytes(uri, local.read_bytes())


def contact_sheet(sections: Sequence[SheetSection], out: Path) -> None:
    """Write the sections as one PNG, up to 1240 px wide.

    Raises ValueError when no section holds a picture.
    """
    filled = [(section, _lines_of_cells(section)) for section in sections if section.pictures]
    if not filled:
        raise ValueError(f"{out}: no pictures to show; give at least one section that holds some")
    all_lines = [line for _, lines in filled for line in lines]
    content_px = max(sum(cell.image.width + _GAP_PX for cell in line) - _GAP_PX for line in all_lines)
    title_px = max(int(_font(_TITLE_FONT_PX).getlength(_title(section))) for section, _ in filled)
    line_heights_px = sum(max(cell.height_px for cell in line) + _GAP_PX for line in all_lines)
    head_px = _TITLE_FONT_PX + 22
    height_px = 2 * _MARGIN_PX + len(filled) * (head_px + _GAP_PX) + line_heights_px - 2 * _GAP_PX
    page = Image.new("RGB", (max(content_px, title_px) + 2 * _MARGIN_PX, height_px), _PAPER)
    canvas = ImageDraw.Draw(page)
    top = _MARGIN_PX
    for section, lines in filled:
        canvas.text((_MARGIN_PX, top), _title(section), fill=_INK, font=_font(_TITLE_FONT_PX))
        rule = top + _TITLE_FONT_PX + 9
        canvas.line([(_MARGIN_PX, rule), (page.width - _MARGIN_PX, rule)], fill=_FAINT)
        top += head_px
        for line in lines:
            left = _MARGIN_PX
            for cell in line:
                cell.paint(page, left, top)
                left += cell.image.width + _GAP_PX
            top += max(cell.height_px for cell in line) + _GAP_PX
        top += _GAP_PX
    page.save(out)
