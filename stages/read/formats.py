"""What a file is, by its first bytes: magic number -> (kind, format). The name is never asked: corpora are full of
JPEG bytes under `.png` names.
"""

import re

import pyarrow as pa
import pyarrow.compute as pc

HEAD_BYTES = 4096

# (offset, magic, kind, format): the first match wins.
_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\xff\xd8\xff", "image", "jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "image", "png"),
    (0, b"GIF87a", "image", "gif"),
    (0, b"GIF89a", "image", "gif"),
    (8, b"CR\x02", "image", "cr2"),  # a TIFF outside; PIL would open its thumbnail
    (0, b"II*\0", "image", "tiff"),
    (0, b"MM\0*", "image", "tiff"),
    (0, b"II+\0", "image", "tiff"),
    (0, b"MM\0+", "image", "tiff"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "image", "jpeg2000"),
    (0, b"\xff\x4f\xff\x51", "image", "jpeg2000"),
    (0, b"\xff\x0a", "image", "jxl"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "image", "jxl"),
    (0, b"8BPS", "image", "psd"),
    (0, b"\x76\x2f\x31\x01", "image", "exr"),
    (0, b"qoif", "image", "qoi"),
    (0, b"FLV\x01", "video", "flv"),
    (0, b"OggS", "video", "ogg"),
    (0, b"\0\0\x01\xba", "video", "mpeg"),
    (0, b"\0\0\x01\xb3", "video", "mpeg"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video", "asf"),
    (0, b"YUV4MPEG2 ", "video", "y4m"),
)
_RIFF = {b"WEBP": ("image", "webp"), b"AVI ": ("video", "avi")}
_BMP_HEADER_BYTES = (12, 16, 40, 52, 56, 64, 108, 124)
_MP4_BOXES = {b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"moof", b"styp", b"sidx"}
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_SVG = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*|<!DOCTYPE\s+svg.*?>\s*)*<svg[\s>]", re.S)

# Recognised so that the reason can say so, but no decoder here reads them.
UNSUPPORTED = frozenset({"svg", "heic", "jxl", "psd", "exr", "cr2", "cr3"})

_EXTENSIONS = {
    "jpeg": {"jpg", "jpeg", "jpe", "jfif", "mpo"},
    "png": {"png", "apng"},
    "tiff": {"tif", "tiff"},
    "jpeg2000": {"jp2", "j2k", "jpx", "jpf", "j2c", "jpc"},
    "avif": {"avif", "avifs"},
    "heic": {"heic", "heif", "hif"},
    "bmp": {"bmp", "dib"},
    "ppm": {"ppm", "pgm", "pbm", "pnm"},
    "mp4": {"mp4", "m4v", "mov", "qt", "3gp", "3g2", "m4a", "mj2", "f4v"},
    "matroska": {"mkv", "mka", "mks", "mk3d"},
    "mpeg": {"mpg", "mpeg", "m2v", "m1v", "vob", "mpv"},
    "mpegts": {"ts", "m2ts", "mts"},
    "ogg": {"ogg", "ogv", "oga", "ogx"},
    "asf": {"asf", "wmv", "wma"},
    "svg": {"svg"},
}
_OTHER_IMAGES = ("gif", "webp", "qoi", "ico", "psd", "exr", "jxl", "cr2", "cr3")  # named as their only extension
_OTHER_VIDEOS = ("webm", "avi", "flv", "y4m")
_VIDEOS = ("mp4", "matroska", "mpeg", "mpegts", "ogg", "asf")
_URL = r"(?s)^https?://[^/?#]*([^?#]*).*$"


def _iso_media(head: bytes) -> tuple[str, str]:
    if head[4:8] != b"ftyp":
        return "video", "mp4"
    major = head[8:12]
    size = min(int.from_bytes(head[:4], "big"), 256)
    compatible = {head[i : i + 4] for i in range(16, size, 4)}
    if major in _AVIF_BRANDS or (major in _HEIF_BRANDS and compatible & _AVIF_BRANDS):
        return "image", "avif"
    if major in _HEIF_BRANDS:
        return "image", "heic"
    if major == b"crx ":
        return "image", "cr3"
    return "video", "mp4"


def sniff(head: bytes) -> tuple[str, str | None]:
    """(kind, format) of a file from its first bytes (4,096 are enough); ("unknown", None) when nothing matches.

    Formats are images' names (jpeg, png, ...) and videos' containers (mp4, matroska, webm, avi, ...).
    """
    for offset, magic, kind, name in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return kind, name
    if head[:4] == b"RIFF" and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    if head[4:8] == b"ftyp" or head[4:8] in _MP4_BOXES:
        return _iso_media(head)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "video", "webm" if b"webm" in head[:64] else "matroska"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADER_BYTES:
        return "image", "bmp"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "image", "ppm"
    if head[:4] == b"\0\0\x01\0" and 0 < int.from_bytes(head[4:6], "little") < 64 and head[9:10] == b"\0":
        return "image", "ico"
    for start in (0, 4):  # transport stream: a sync byte every 188 bytes, or every 192 on Blu-ray
        if head[start:][:: 188 + start][:4] == b"\x47" * 4:
            return "video", "mpegts"
    if _SVG.match(head):
        return "image", "svg"
    return "unknown", None


def extensions_of(kind: str) -> frozenset[str]:
    """Extensions, in lower case, that say `image` or `video`: what a file may be, before it is opened."""
    names = set(_VIDEOS) if kind == "video" else set(_EXTENSIONS) - set(_VIDEOS)
    return frozenset().union(_OTHER_VIDEOS if kind == "video" else _OTHER_IMAGES, *(_EXTENSIONS[n] for n in names))


def extension_fits(uri: str, name: str | None) -> bool | None:
    """Whether the extension of `uri` belongs to format `name`; null when either says nothing."""
    base, dot, extension = uri.rsplit("/", 1)[-1].rpartition(".")
    if name is None or not base or not dot:
        return None
    return _fits(extension.lower(), name)


def extensions_fit(names: pa.ChunkedArray, formats: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same of columns of names and formats; of a URL its path is the name."""
    if pc.any(pc.match_substring_regex(names, _URL)).as_py():
        names = pc.replace_substring_regex(names, _URL, r"\1")
    extensions = pc.struct_field(pc.extract_regex(names, r"[^/]\.(?P<extension>[^./]*)$"), "extension")
    pairs = pc.binary_join_element_wise(pc.utf8_lower(extensions), formats, "\n").combine_chunks().dictionary_encode()
    of_pairs = [_fits(*pair.rsplit("\n", 1)) for pair in pairs.dictionary.to_pylist()]
    return pa.chunked_array([pa.array(of_pairs, pa.bool_()).take(pairs.indices)])


def _fits(extension: str, name: str) -> bool:
    return extension in _EXTENSIONS.get(name, {name})
