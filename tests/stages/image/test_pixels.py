import io
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from tokenmill.stages.image.pixels import Picture
from tokenmill.stages.table.rows import RowError

LIMIT = 10_000_000


def _encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **options)
    return sink.getvalue()


def _rejection(content: bytes, max_pixels: int = LIMIT) -> dict:
    with pytest.raises(RowError) as caught:
        Picture(content, max_pixels).rgb()
    return caught.value.columns


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_undone(texture, orientation: int) -> None:
    upright = Image.fromarray(texture(64, 40))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the transposition that a camera applied
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Picture(_encoded(stored, exif=exif), LIMIT)
    assert (picture.width_px, picture.height_px) == (64, 40)
    assert np.array_equal(picture.rgb(), np.asarray(upright))


def test_transparency_becomes_white() -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[0] = (255, 0, 0, 255)
    rgba[1] = (255, 0, 0, 0)
    shown = Picture(_encoded(Image.fromarray(rgba)), LIMIT).rgb()
    assert shown[0, 0].tolist() == [255, 0, 0] and (shown[1:] == 255).all()
    palette = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).convert("P")
    assert (Picture(_encoded(palette, transparency=3), LIMIT).rgb()[0, 3] == 255).all()


def test_sixteen_bit_greys_are_scaled_not_clipped() -> None:
    grey = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    for format in ("PNG", "TIFF"):
        shown = Picture(_encoded(Image.fromarray(grey), format), LIMIT).rgb()
        assert np.array_equal(shown[..., 0].ravel(), np.arange(256)), format


def test_cmyk_and_grey_become_rgb() -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = Picture(_encoded(cmyk, "JPEG"), LIMIT).rgb()[4, 4]
    assert red > 200 and green < 60 and blue < 60
    assert Picture(_encoded(Image.new("L", (8, 8), 7)), LIMIT).rgb().shape == (8, 8, 3)


def test_floats_have_no_range() -> None:
    assert _rejection(_encoded(Image.new("F", (4, 4)), "TIFF"))["reject_reason"] == "unsupported_format"


def test_reduced_jpeg_keeps_its_shown_size(texture) -> None:
    content = _encoded(Image.fromarray(texture(2400, 1600)), "JPEG")
    picture = Picture(content, LIMIT)
    assert picture.rgb(at_least_px=512).shape == (800, 1200, 3)
    assert (picture.width_px, picture.height_px) == (2400, 1600)
    assert Picture(content, LIMIT).rgb().shape == (1600, 2400, 3)


def test_animations_are_rejected_and_stereo_pairs_are_not(texture) -> None:
    def encoded(format: str) -> bytes:
        frames = [Image.fromarray(texture(32, 24, seed)) for seed in range(3)]
        return _encoded(frames[0], format, save_all=True, append_images=frames[1:])

    for format in ("GIF", "WEBP", "PNG"):
        rejected = _rejection(encoded(format))
        assert (rejected["reject_reason"], rejected["num_frames"], rejected["width_px"]) == ("animated", 3, 32), format
    for format in ("MPO", "TIFF"):
        picture = Picture(encoded(format), LIMIT)
        assert picture.num_frames == 3
        assert np.abs(picture.rgb().astype(int) - texture(32, 24, 0)).mean() < 8, format


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "JPEG2000"])
def test_truncated_files_are_corrupt(texture, format: str) -> None:
    content = _encoded(Image.fromarray(texture(200, 200)), format)
    assert _rejection(content[: len(content) * 2 // 3])["reject_reason"] == "corrupt"


def test_png_with_damaged_pixels_is_corrupt(texture) -> None:
    content = bytearray(_encoded(Image.fromarray(texture(200, 200))))
    content[len(content) // 2] ^= 0xFF
    assert _rejection(bytes(content))["reject_reason"] == "corrupt"


def test_pixel_limit_is_checked_before_decoding() -> None:
    content = _encoded(Image.new("1", (4000, 4000)))
    assert Picture(content, 16_000_000).width_px == 4000
    assert _rejection(content, 15_999_999)["reject_reason"] == "too_many_pixels"
    assert _rejection(content, 1_000)["reject_reason"] == "too_many_pixels"


def test_no_damage_raises_anything_else(texture) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(texture(48, 40))
    for format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "ICO"):
        good = _encoded(image, format)
        for _ in range(20):
            damaged = bytearray(good)
            for place in rng.integers(0, len(damaged), 6):
                damaged[place] = rng.integers(0, 256)
            try:
                assert Picture(bytes(damaged), LIMIT).rgb().shape[2] == 3
            except RowError as rejected:
                assert rejected.columns["reject_reason"] in (
                    "corrupt",
                    "too_many_pixels",
                    "animated",
                    "unsupported_format",
                )


def test_libraries_print_nothing(shared_data, capfd: pytest.CaptureFixture) -> None:
    for path in sorted((shared_data / "bad" / "images").iterdir()):
        with suppress(RowError):
            Picture(path.read_bytes(), LIMIT).rgb()
    assert capfd.readouterr() == ("", "")
