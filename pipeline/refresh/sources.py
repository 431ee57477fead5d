"""What the sources hold now: one row per object, with the text or the etag of its caption.

Listing reads names, sizes and etags only (locally: mtime and size). Captions come from a `.txt` of the same stem
beside a file, or from a `captions.jsonl` (`file`, and `caption` or a list `captions`) in the same folder or above it;
the sidecar wins. Files that serve as captions and hidden files are no media; they are counted, everything else becomes
a row. A container is one row too: what is in it is read by the workers (stages/read/containers.py). So is a
captions.jsonl with malformed lines, which are its members; its etag says which they are.
"""

import io
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
from botocore.exceptions import BotoCoreError, ClientError

from tokenmill import storage
from tokenmill.pipeline.config import CAPTIONS_NAME, ConfigError, Source
from tokenmill.pipeline.refresh.walk import Entry, SilentError, walk
from tokenmill.stages.read import lines
from tokenmill.stages.table.columns import UNPACK
from tokenmill.stages.table.rows import RowError
from tokenmill.stages.table.text import MAX_CAPTION_CHARS, clean
from tokenmill.storage import object_store
from tokenmill.storage.identity import fingerprint_of

_SIDECAR_READERS = 16
NAMED = 5  # malformed lines

LISTING = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("caption_uri", pa.string()),  # the sidecar
        pa.field("caption", pa.string()),  # the text, when it stands in a captions.jsonl
        pa.field("caption_etag", pa.string()),  # changes with the caption; null = none
        *(UNPACK.field(name) for name in ("container", "column", "caption_column", "refused")),
    ]
)

ENDINGS = {  # of the containers that a kind of source opens
    "webdataset": (".tar", ".tar.gz", ".tgz"),  # the compressed are rejected by name, not passed over
    "parquet": (".parquet",),
    "urls": (".txt", ".csv", ".tsv", ".jsonl", ".parquet"),
    "text": (".jsonl", ".csv", ".tsv", ".parquet"),
}


@dataclass
class Listing:
    """Entries of all sources, sorted by uri; how many names were not media; and what could not be listed."""

    rows: pa.Table
    ignored: Counter[str] = field(default_factory=Counter)
    unseen: list[str] = field(default_factory=list)  # folders and prefixes whose content is not known now
    failed: list[str] = field(default_factory=list)  # what became of sources that failed half-way
    num_malformed: int = 0  # lines of captions.jsonl
    malformed: list[str] = field(default_factory=list)  # the first of them


def check_sources(sources: list[Source], limit_s: float | None = None) -> None:
    """Open every source and look at its first entry; at most `limit_s` at each. Raises ConfigError for a source that
    is not there or cannot be listed.
    """
    for number, source in enumerate(sources):
        with _named(number, source):
            uri = storage.absolute(source.uri)
            if storage.is_remote(uri):
                object_store.check(uri)
            elif not os.access(uri, os.R_OK) and os.path.exists(uri):
                raise PermissionError("it may not be read")
            next(walk(uri, source.kind != "files", source.follow_links, limit_s), None)


@contextmanager
def _named(number: int, source: Source) -> Iterator[None]:
    """What failed, and where. Raises ConfigError."""
    key = f"sources.{number}.uri"
    try:
        yield
    except object_store.StoreError as error:
        raise ConfigError(f"{key}: {error}") from None
    except (ClientError, BotoCoreError) as error:
        raise ConfigError(f"{key}: {object_store.explained(source.uri, error)}") from None
    except SilentError as error:
        raise ConfigError(f"{key}: {error}; see whether the disk answers (ls), then run again") from None
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{key}: {source.uri}: {said}; check the address and your permissions") from None


def list_sources(sources: list[Source], limit_s: float | None = None) -> Listing:
    """List every source, waiting at most `limit_s` for an entry.

    A source that fails on the way is named in `failed`, and all below it counts as unseen: nothing of it is taken for
    new, changed or gone. Raises ConfigError for one that cannot be used at all.
    """
    files, containers = list[pa.Table](), [LISTING.empty_table()]
    listing = Listing(containers[0])
    for number, source in enumerate(sources):
        uri, entries = storage.absolute(source.uri), list[Entry]()
        try:
            with _named(number, source):
                for entry in walk(uri, source.kind != "files", source.follow_links, limit_s):
                    entries.append(entry)
        except ConfigError as error:
            if not entries:
                raise
            listing.failed.append(str(error))
            listing.unseen += [uri, *([storage.absolute(source.captions)] if source.captions else [])]
            continue
        listing.unseen += [entry.uri for entry in entries if entry.is_unseen]
        with _named(number, source):
            if source.kind == "files":
                files.append(_files(entries, source, listing))
            else:
                containers.append(_containers(entries, source, listing))
    rows = pa.concat_tables([*containers, *files]).combine_chunks()
    if len(sources) > 1:  # a file that stands in several belongs to the first that opens it, else to the first
        first = pc.equal(pc.index_in(rows["uri"], value_set=rows["uri"].combine_chunks()), pa.array(range(len(rows))))
        rows = rows.filter(first)
    listing.rows = rows.sort_by("uri")
    return listing


def _containers(objects: list[Entry], source: Source, listing: Listing) -> pa.Table:
    endings = ENDINGS[source.kind]
    mine = [item for item in objects if item.uri.lower().endswith(endings)]
    if not mine:
        raise FileNotFoundError(f"nothing there that ends in {', '.join(endings)}, as kind '{source.kind}' asks")
    if other := len(objects) - len(mine):
        listing.ignored[f"no {source.kind} file"] += other
    # Another column is another content.
    columns = [source.column, source.caption_column]
    state = f"#{fingerprint_of(columns)}" if any(columns) else ""
    none = [None] * len(mine)
    return pa.table(
        [
            [item.uri for item in mine],
            [f"{item.etag}{state}" for item in mine],
            [item.size_bytes for item in mine],
            *(none, none, none),
            *([value] * len(mine) for value in (source.kind, *columns)),
            [item.refused for item in mine],
        ],
        schema=LISTING,
    )


def _files(objects: list[Entry], source: Source, listing: Listing) -> pa.Table:
    lists = _caption_lists(objects, source)
    texts, malformed = _captions_by_uri(lists, listing)
    of_captions = set(lists)
    stems = {_stem(item.uri) for item in objects if not item.uri.endswith(".txt")}
    readable = [item for item in objects if item.uri.endswith(".txt") and item.refused is None]
    beside = {_stem(item.uri): item for item in readable if _stem(item.uri) in stems}
    rows: list[Entry] = []
    sidecars: list[Entry | None] = []
    for item in objects:
        name = item.uri.rsplit("/", 1)[1]
        if name.startswith("."):
            listing.ignored["hidden file"] += 1
        elif item.uri in of_captions or (
            item.refused is None and item.uri.endswith(".txt") and _stem(item.uri) in beside
        ):
            listing.ignored["caption file"] += 1
        else:
            rows.append(item)
            sidecars.append(beside.get(_stem(item.uri)))
    captions = [None if side else texts.get(item.uri) for item, side in zip(rows, sidecars, strict=True)]
    states = [
        side.etag if side else None if text is None else fingerprint_of(text)
        for side, text in zip(sidecars, captions, strict=True)
    ]
    none = [None] * len(rows)
    files = pa.table(
        [
            [item.uri for item in rows],
            [item.etag for item in rows],
            [item.size_bytes for item in rows],
            [side.uri if side else None for side in sidecars],
            captions,
            states,
            *(none, none, none),
            [item.refused for item in rows],
        ],
        schema=LISTING,
    )
    return pa.concat_tables([files, malformed])


def _stem(uri: str) -> str:
    folder, _, name = uri.rpartition("/")
    return f"{folder}/{name.rsplit('.', 1)[0]}"


def _caption_lists(objects: list[Entry], source: Source) -> list[str]:
    """URIs of the files that hold captions of others, the deepest last: it is the nearest to the media, and wins."""
    there = [item.uri for item in objects if item.uri.rsplit("/", 1)[1] == CAPTIONS_NAME and item.refused is None]
    elsewhere = [storage.absolute(source.captions)] if source.captions else []
    return sorted(dict.fromkeys([*elsewhere, *there]), key=lambda uri: uri.count("/"))


def _captions_by_uri(uris: list[str], listing: Listing) -> tuple[dict[str, str], pa.Table]:
    """Captions that stand in lists, by the uri of their file; and rows of LISTING of lists with malformed lines."""
    found: dict[str, str] = {}
    rows: list[dict[str, str | int]] = []

    def malformed(uri: str, data: bytes) -> Iterator[tuple[int, RowError]]:
        """Keeps the other lines."""
        folder = uri.rsplit("/", 1)[0]
        for number, line in lines.captions(lines.bounded(io.BytesIO(data))):
            if not isinstance(line, RowError):
                name, caption = line
                if caption:
                    found[storage.join(folder, name)] = caption
                continue
            listing.num_malformed += 1
            if len(listing.malformed) < NAMED:
                listing.malformed.append(f"{uri}, line {number}")
            yield number, line

    for uri in uris:
        data = storage.read_bytes(uri)
        if told := list(lines.told(malformed(uri, data))):
            etag = fingerprint_of(told)
            rows.append({"uri": uri, "etag": etag, "size_bytes": len(data), "container": "captions"})
    return found, pa.Table.from_pylist(rows, schema=LISTING)


def _sidecar(uri: str) -> str | None:
    """The text of a caption file; null for one that is gone or may not be read by now, and for an empty one."""
    try:
        data = next(storage.read_chunks(uri, 0, 4 * MAX_CAPTION_CHARS), b"")
    except (FileNotFoundError, PermissionError):
        return None
    return clean(data.decode(errors="replace"), MAX_CAPTION_CHARS).strip() or None


def with_captions(rows: pa.Table) -> pa.Table:
    """Rows of a listing as (uri, size_bytes, source_caption) and what containers are, the sidecars read."""

    def text(row: dict[str, str | None]) -> str | None:
        if row["caption_uri"] is None:
            return row["caption"]
        return _sidecar(row["caption_uri"])

    with ThreadPoolExecutor(_SIDECAR_READERS) as readers:
        texts = list(readers.map(text, rows.select(["caption_uri", "caption"]).to_pylist()))
    made = rows.select(["uri", "size_bytes"]).append_column("source_caption", pa.array(texts, pa.string()))
    for name in ("container", "column", "caption_column", "refused"):
        made = made.append_column(name, rows[name])
    return made
