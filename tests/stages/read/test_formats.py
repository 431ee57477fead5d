import pyarrow as pa
import pytest

from tokenmill.stages.read.formats import UNSUPPORTED, extension_fits, extensions_fit, sniff


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"\xff\xd8\xff\xe0\0\x10JFIF", ("image", "jpeg")),
        (b"RIFF\x10\0\0\0WEBPVP8 ", ("image", "webp")),
        (b"RIFF\x10\0\0\0AVI LIST", ("video", "avi")),
        (b"RIFF\x10\0\0\0WAVEfmt ", ("unknown", None)),
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1", ("image", "avif")),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", ("image", "avif")),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", ("image", "heic")),
        (b"\0\0\0\x18ftypisom\0\0\0\0mif1heic", ("video", "mp4")),
        (b"\0\0\0\x08wide\0\0\0\0mdat", ("video", "mp4")),
        (b"\x1a\x45\xdf\xa3\x42\x82\x84webm", ("video", "webm")),
        (b"\x1a\x45\xdf\xa3\x42\x82\x88matroska", ("video", "matroska")),
        (b"II*\0\x10\0\0\0CR\x02\0", ("image", "cr2")),
        (b"G" + 187 * b"\0" + b"G" + 187 * b"\0" + b"G" + 187 * b"\0" + b"G", ("video", "mpegts")),
        (b"G" * 10, ("unknown", None)),
        (b'<?xml version="1.0"?>\n<!-- a -->\n<svg xmlns="x">', ("image", "svg")),
        (b"<html><svg></svg></html>", ("unknown", None)),
        (b"BM" + 12 * b"\0" + b"\x28\0\0\0", ("image", "bmp")),
        (b"BMW is a maker of cars and motorcycles", ("unknown", None)),
        (b"Plain text about P6 \n", ("unknown", None)),
        (b"P6\n4 4\n255\n", ("image", "ppm")),
        (b"", ("unknown", None)),
    ],
)
def test_sniff(head: bytes, expected: tuple[str, str | None]) -> None:
    assert sniff(head) == expected


def test_every_real_file_is_recognised_as_the_manifest_says(shared_data) -> None:
    for path in sorted((shared_data / "images").rglob("*.*")) + sorted((shared_data / "videos").iterdir()):
        kind, name = sniff(path.read_bytes()[:4096])
        assert kind == ("video" if "videos" in path.parts else "image"), path
        assert name not in UNSUPPORTED or path.suffix in (".svg", ".heic", ".jxl", ".psd"), path


def test_extension_fits() -> None:
    assert extension_fits("s3://b/a.JPG", "jpeg") is True
    assert extension_fits("/a/b.png", "jpeg") is False
    assert extension_fits("/a.d/b", "jpeg") is None
    assert extension_fits("/a/.jpeg", "jpeg") is None
    assert extension_fits("/a/b.png", None) is None


@pytest.mark.parametrize("format_", ["jpeg", "mp4", "gif", None])
def test_columns_of_names_are_judged_as_single_names_are(format_) -> None:
    names = ["/a/b.JPG", "b.gif", "/a.jpg/b", "/a/.jpeg", "a.", "..jpg", "a.jpg\n", "a\nb.mov", "", "ü.tar.jpg"]
    found = extensions_fit(
        pa.chunked_array([names, []], pa.string()), pa.chunked_array([[format_] * len(names)], pa.string())
    )
    assert found.to_pylist() == [extension_fits(name, format_) for name in names]


def test_of_a_url_the_path_is_the_name() -> None:
    names = [
        "https://host.jpg",
        "http://h.png/a.jpg?b=c.png",
        "http://h/a.png#b.jpg",
        "http://h/a/",
        "/d/http://x.jpg?y",
    ]
    found = extensions_fit(pa.chunked_array([names]), pa.chunked_array([["jpeg"] * len(names)]))
    assert found.to_pylist() == [None, True, False, None, False]
