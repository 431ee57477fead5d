"""The contact sheet: nothing is lost, nothing is smoothed, no control character reaches the page or breaks it."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from tokenmill import storage
from tokenmill.pipeline.reports.sheet import (
    MAX_WIDTH_PX,
    Picture,
    SheetSection,
    contact_sheet,
    default_sheet,
    escaped,
    image_grid,
    thumbnail,
    wrapped,
    write_picture,
)

GREEN, RED = (22, 163, 74), (220, 38, 38)


def test_a_sheet_lands_beside_the_report_on_a_disk_and_in_a_store(tmp_path, monkeypatch, s3):
    monkeypatch.chdir(tmp_path)
    section = SheetSection("one", [Picture(_plain(64, 64), "a")])
    for root in (str(tmp_path / "root"), f"{s3}/root"):
        write_picture(default_sheet(root), lambda local: contact_sheet([section], local))
        assert storage.list_names(f"{root}/reports") == ["sheet.png"]
        assert storage.read_bytes(f"{root}/reports/sheet.png").startswith(b"\x89PNG")
    assert [each.name for each in tmp_path.iterdir()] == ["root"], "nothing in the current folder"


def _plain(height: int, width: int, value: int = 90) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def _num_pixels(page: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((page == colour).all(axis=-1).sum())


def test_every_picture_is_on_the_page_pixel_by_pixel(tmp_path):
    pictures = [Picture(_plain(64, 64, value), f"number {value}") for value in range(10, 30)]
    contact_sheet([SheetSection("one", pictures[:12]), SheetSection("two", pictures[12:])], tmp_path / "sheet.png")
    page = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert page.shape[1] <= MAX_WIDTH_PX
    for value in range(10, 30):
        rows, columns = np.where((page == value).all(axis=-1))
        assert min(np.ptp(rows), np.ptp(columns)) >= 127
        inside = page[rows.min() : rows.min() + 128, columns.min() : columns.min() + 128]
        assert _num_pixels(inside, (value,) * 3) >= 128 * 128 - 1


def test_verdicts_are_marked_and_counted(tmp_path):
    def sheet(name: str, *verdicts: bool | None) -> np.ndarray:
        contact_sheet([SheetSection("x", [Picture(_plain(64, 64), "a", ok) for ok in verdicts])], tmp_path / name)
        return np.asarray(Image.open(tmp_path / name))

    unjudged, right, wrong = sheet("none.png", None), sheet("right.png", True), sheet("wrong.png", False)
    assert _num_pixels(unjudged, GREEN) == _num_pixels(unjudged, RED) == 0
    assert _num_pixels(right, GREEN) > 500 and _num_pixels(right, RED) == 0
    assert _num_pixels(wrong, RED) > 500 and _num_pixels(wrong, GREEN) == 0


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((64, 64), (128, 128)),
        ((40, 40), (160, 160)),
        ((300, 200), (200, 300)),
        ((64, 800), (800, 64)),
        ((8, 2000), None),
    ],
)
def test_thumbnails(size, shown):
    picture = thumbnail(_plain(*size))
    assert picture.size == (shown or (1184, 4))


def test_thumbnails_are_not_smoothed():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert (np.asarray(thumbnail(image))[::2, 1::2] == image).all()


def test_texts_are_escaped():
    assert escaped("a red circle") == "a red circle"
    assert escaped("a\nb\x1b[31m\u202e\u00e9") == "a\\nb\\x1b[31m\\u202e\\xe9"


@pytest.mark.parametrize(
    "text", ["a yellow triangle left of a purple triangle", "W" * 400, "word " * 200, "", "\x00" * 50]
)
def test_wrapped_text_stays_below_its_picture(text):
    lines = wrapped(text, 128)
    assert len(lines) <= 4
    assert bool(lines) == bool(text)
    assert all(ImageFont.load_default(size=13).getlength(line) <= 128 for line in lines)
    assert len(text) >= 50 or "..." not in "".join(lines)


def test_empty_sections_take_no_room(tmp_path):
    full = SheetSection("full", [Picture(_plain(64, 64))])
    contact_sheet([full], tmp_path / "a.png")
    contact_sheet([SheetSection("empty", []), full], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with pytest.raises(ValueError, match="no pictures"):
        contact_sheet([SheetSection("empty", [])], tmp_path / "c.png")


def test_image_grid_places_row_by_row():
    grid = np.asarray(image_grid([_plain(4, 6, value) for value in (10, 20, 30)], columns=2, gap_px=1))
    assert grid.shape == (9, 13, 3)
    assert (grid[:4, :6] == 10).all() and (grid[:4, 7:] == 20).all() and (grid[5:, :6] == 30).all()
    assert (grid[4] == 255).all() and (grid[5:, 7:] == 255).all()
    assert image_grid([_plain(4, 6)], columns=5).size == (6, 4)
    for images, columns in (([], 2), ([_plain(4, 6)], 0)):
        with pytest.raises(ValueError, match="grid"):
            image_grid(images, columns)
