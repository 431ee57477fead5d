"""A folder or an s3:// prefix -> what stands there, by kind, from a bounded look.

Names are listed up to a limit, and a few files opened: containers by the reader that a run opens them with, so what is
found here is what a run finds; pictures by their headers, for their sizes. The rest is judged by its name alone.
"""

import io
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa
from botocore.exceptions import BotoCoreError, ClientError
from PIL import Image

from tokenmill import storage
from tokenmill.pipeline.config import CAPTIONS_NAME, ConfigError
from tokenmill.pipeline.refresh.sources import ENDINGS
from tokenmill.pipeline.refresh.walk import Entry, walk
from tokenmill.stages import RowError, sniff
from tokenmill.stages.read.containers import Member, members
from tokenmill.stages.read.formats import HEAD_BYTES, extensions_of
from tokenmill.storage import object_store

MOST_LISTED = 10_000
_OPENED = 24  # containers
_MEMBERS = 40  # of each
_MEASURED = 24  # pictures
_SNIFFED = 16  # files whose name says nothing
_HEADER_BYTES = 1 << 18  # of a picture; EXIF with a thumbnail stands before its size
_SILENT_S = 60.0
_MEDIA = ("image", "video")
_DOCUMENT_CHARS = 600  # what stands beside URLs and is longer on average is no caption
_TABULAR = ("parquet", "urls", "text")  # kinds of sources that open tables, tried in this order
_TABLES = tuple({ending for kind in _TABULAR for ending in ENDINGS[kind]})


@dataclass(frozen=True)
class Container:
    """A tar or a table, and what its first members are: kind of source (null: none opens it), counts by kind of medium,
    how many of the members looked at have a caption.
    """

    uri: str
    kind: str | None
    holds: Counter[str]
    num_captions: int = 0
    num_looked: int = 0


@dataclass
class There:
    """What was seen. `files`: image, video, other; `containers` were opened, `unopened` are more like them by kind."""

    uri: str
    num_listed: int = 0
    is_all: bool = True
    num_bytes: int = 0
    files: Counter[str] = field(default_factory=Counter)
    sidecars: list[str] = field(default_factory=list)  # captions beside media
    caption_lists: list[str] = field(default_factory=list)
    containers: list[Container] = field(default_factory=list)
    unopened: list[Container] = field(default_factory=list)
    short_sides_px: list[int] = field(default_factory=list)  # of a few pictures

    @property
    def all_containers(self) -> list[Container]:
        """Opened, and judged by one that was."""
        return [*self.containers, *self.unopened]

    def has(self, kind: str) -> bool:
        """Whether there are images, or videos, in files or containers; unknown behind URLs, so yes."""
        found = Counter(self.files)
        for each in self.containers:
            found += each.holds
        return found[kind] > 0 or found["url"] > 0


def look(uri: str, most: int = MOST_LISTED) -> There:
    """List up to `most` objects below `uri`, and open a few. Raises ConfigError for what cannot be listed."""
    with _told(uri):
        absolute = storage.absolute(uri)
        if storage.is_remote(absolute):
            object_store.check(absolute)
        entries = list(islice(walk(absolute, True, limit_s=_SILENT_S), most + 1))
    there = There(absolute, min(len(entries), most), len(entries) <= most)
    entries = [entry for entry in entries[:most] if not entry.uri.rpartition("/")[2].startswith(".")]
    there.num_bytes = sum(entry.size_bytes for entry in entries)
    _sort(there, [entry for entry in entries if entry.refused is None])
    there.files["other"] += sum(entry.refused is not None for entry in entries)
    return there


@contextmanager
def _told(uri: str) -> Iterator[None]:
    try:
        yield
    except object_store.StoreError as error:
        raise ConfigError(str(error)) from None
    except (ClientError, BotoCoreError) as error:
        raise ConfigError(object_store.explained(uri, error)) from None
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{uri}: {said}; give a folder, a file or s3://bucket/prefix that may be read") from None


def _sort(there: There, entries: list[Entry]) -> None:
    kinds = {extension: kind for kind in _MEDIA for extension in extensions_of(kind)}
    media, tars, tables, unknown = list[Entry](), list[Entry](), list[Entry](), list[Entry]()
    stems = Counter(_stem(entry.uri) for entry in entries if not entry.uri.endswith(".txt"))
    for entry in entries:
        name = entry.uri.lower()
        if name.endswith(f"/{CAPTIONS_NAME}"):
            there.caption_lists.append(entry.uri)
        elif name.endswith(".txt") and stems[_stem(entry.uri)]:
            there.sidecars.append(entry.uri)
        elif name.endswith(ENDINGS["webdataset"]):
            tars.append(entry)
        elif name.endswith(_TABLES):
            tables.append(entry)
        elif kind := kinds.get(name.rpartition(".")[2]):
            there.files[kind] += 1
            media.append(entry)
        else:
            unknown.append(entry)
    for number, entry in enumerate(unknown):
        there.files[_sniffed(entry.uri) if number < _SNIFFED else "other"] += 1
    pictures = [entry for entry in media if kinds[entry.uri.lower().rpartition(".")[2]] == "image"]
    for entry in random.Random(0).sample(pictures, min(_MEASURED, len(pictures))):
        _measure(there, _head(entry.uri))
    _open_some(there, tars, ("webdataset",))
    _open_some(there, tables, _TABULAR)


def _open_some(there: There, entries: list[Entry], kinds: tuple[str, ...]) -> None:
    """Open the first of each folder and ending, then others while few are open; the rest is taken to be like those."""
    likes: dict[tuple[str, str], Container] = {}
    first = {_like(entry.uri): entry for entry in reversed(entries)}
    order = [*reversed(first.values()), *(entry for entry in entries if first[_like(entry.uri)] is not entry)]
    for number, entry in enumerate(order):
        like = likes.get(_like(entry.uri))
        if number < _OPENED:
            opened = _opened(there, entry.uri, kinds)
            there.containers.append(opened)
            likes.setdefault(_like(entry.uri), opened)
        elif like is not None:
            there.unopened.append(Container(entry.uri, like.kind, Counter()))
        else:
            there.files["other"] += 1


def _opened(there: There, uri: str, kinds: tuple[str, ...]) -> Container:
    for kind in kinds:
        if not uri.lower().endswith(ENDINGS[kind]):
            continue
        found = _members(uri, kind)
        holds = Counter[str]()
        for member in found:
            holds[_kind_of(member)] += 1
            if member.content is not None:
                _measure(there, member.content[:_HEADER_BYTES])
        said = [len(member.caption) for member in found if member.caption and member.url]
        if kind == "urls" and said and sum(said) > _DOCUMENT_CHARS * len(said):
            continue  # documents with the URL that each came from
        named = "urls" if holds["url"] else kind
        if holds["image"] + holds["video"] if kind == "webdataset" else _is_mostly_good(holds):
            return Container(uri, named, holds, sum(member.caption is not None for member in found), len(found))
    return Container(uri, None, Counter())


def _members(uri: str, kind: str) -> list[Member]:
    """The first ones; none where the container does not fit the kind, or is damaged from its start."""
    found: list[Member] = []
    try:
        for member in islice(members(uri, kind), _MEMBERS):
            found.append(member)
    except (RowError, OSError, pa.ArrowException, object_store.StoreError):
        pass
    return found


def _kind_of(member: Member) -> str:
    if member.error is not None:
        return "other"
    if member.url is not None:
        return "url" if member.url.startswith(("http://", "https://", "s3://")) else "other"
    if member.text is not None:
        return "text"
    if member.content is None:  # a large one, which a run reads by its span
        return next((kind for kind in _MEDIA if member.name.lower().rpartition(".")[2] in extensions_of(kind)), "other")
    return sniff(member.content[:HEAD_BYTES])[0]


def _is_mostly_good(holds: Counter[str]) -> bool:
    return holds.total() - holds["other"] - holds["unknown"] > holds.total() // 2


def _measure(there: There, head: bytes) -> None:
    """Note the shorter side of a picture that shows it within its first bytes."""
    if len(there.short_sides_px) >= _MEASURED or sniff(head[:HEAD_BYTES])[0] != "image":
        return
    try:
        with Image.open(io.BytesIO(head)) as picture:
            there.short_sides_px.append(min(picture.size))
    except Exception:  # PIL's decoders answer damaged bytes with a dozen types; a run says which
        return


def _head(uri: str, num_bytes: int = _HEADER_BYTES) -> bytes:
    try:
        return b"".join(storage.read_chunks(uri, 0, num_bytes))
    except (OSError, object_store.StoreError):
        return b""


def _sniffed(uri: str) -> str:
    kind = sniff(_head(uri, HEAD_BYTES))[0]
    return kind if kind in ("image", "video") else "other"


def _like(uri: str) -> tuple[str, str]:
    return uri.rpartition("/")[0], uri.lower().rpartition(".")[2]


def _stem(uri: str) -> str:
    folder, _, name = uri.rpartition("/")
    return f"{folder}/{name.rpartition('.')[0] or name}"
