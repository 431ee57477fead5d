"""What the sources hold now: one row per object, with the text or the etag of its caption.

Listing reads names, sizes and etags only (locally: mtime and size). Captions come from a `.txt` of the same stem
beside a file, or from a `captions.jsonl` (`file`, and `caption` or a list `captions`) in the same folder or above it;
the sidecar wins. Files that serve as captions and hidden files are no media; they are counted, everything else becomes
a row. A container is one row too: what is in it is read by the workers (stages/read/containers.py). So is a
captions.jsonl with malformed lines, which are its members; its etag says which they are.
"""

import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
from botocore.exceptions import BotoCoreError, ClientError

from tokenmill import storage
from tokenmill.pipeline.catalog import sql
from tokenmill.pipeline.config import CAPTIONS_NAME, ConfigError, Source
from tokenmill.pipeline.refresh.spool import Spool
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


_BLOCK_ROWS = 20_000
_ENTRIES = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("refused", pa.string()),
        pa.field("is_unseen", pa.bool_()),
    ]
)
_TEXTS = pa.schema([("uri", pa.string()), ("caption", pa.string()), ("etag", pa.string()), ("number", pa.int64())])

# Of `entries`: what is a medium (role null), and what is not. A .txt beside an object of its stem is its caption.
_ROLES = r"""
with stems as (
    select *, ends_with(uri, '.txt') as is_txt, regexp_replace(uri, '\.[^./]*$', '') as stem from entries),
sidecars as (
    select stem, uri, etag from stems
    where is_txt and refused is null and stem in (select stem from stems where not is_txt)),
roles as (
    select *, case
        when contains(uri, '/.') and regexp_matches(uri, '/\.[^/]*$') then 'hidden file'
        when uri in (select unnest($lists::varchar[])) then 'caption file'
        when is_txt and refused is null and stem in (select stem from sidecars) then 'caption file' end as role
    from stems)"""
# The sidecar wins; of several lists the last one that was read.
_CAPTIONED = """
, told as (select uri, max_by(caption, number) as caption, max_by(etag, number) as etag from texts group by uri)
select r.uri, r.etag, r.size_bytes, s.uri as caption_uri, case when s.uri is null then t.caption end as caption,
    coalesce(s.etag, t.etag) as caption_etag, null::varchar as container, null::varchar as "column",
    null::varchar as caption_column, r.refused
from roles r left join sidecars s on r.stem = s.stem left join told t on r.uri = t.uri
where r.role is null"""


@dataclass
class Listing:
    """Entries of all sources; how many names were not media; and what could not be listed."""

    rows: Spool  # of LISTING
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
    listing = Listing(Spool(LISTING))
    containers, files = list[Spool](), list[Spool]()
    for number, source in enumerate(sources):
        uri, entries = storage.absolute(source.uri), Spool(_ENTRIES)
        try:
            with _named(number, source):
                for block in _blocks(walk(uri, source.kind != "files", source.follow_links, limit_s)):
                    entries.add(block)
        except ConfigError as error:
            if not entries.num_rows:
                raise
            listing.failed.append(str(error))
            listing.unseen += [uri, *([storage.absolute(source.captions)] if source.captions else [])]
            continue
        listing.unseen += entries.read(pc.field("is_unseen"))["uri"].to_pylist()
        with _named(number, source):
            if source.kind == "files":
                files.append(_files(entries, source, listing))
            else:
                containers.append(_containers(entries, source, listing))
    listing.rows = _each_once([*containers, *files])
    return listing


def _blocks(entries: Iterable[Entry]) -> Iterator[pa.Table]:
    """Rows of _ENTRIES. What was listed before an error comes before it."""
    block: list[Entry] = []
    try:
        for entry in entries:
            block.append(entry)
            if len(block) >= _BLOCK_ROWS:
                yield _of_entries(block)
                block = []
    except Exception:
        yield _of_entries(block)
        raise
    yield _of_entries(block)


def _of_entries(block: list[Entry]) -> pa.Table:
    columns = zip(*block, strict=True) if block else [[]] * len(_ENTRIES)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, _ENTRIES, strict=True)], _ENTRIES)


def _each_once(spools: list[Spool]) -> Spool:
    """A file that stands in several sources belongs to the first that opens it, else to the first."""
    if len(spools) == 1:
        return spools[0]
    tables: dict[str, sql.Source] = {f"part{rank}": spool.source() for rank, spool in enumerate(spools)}
    union = " union all ".join(f"select *, {rank} as rank from part{rank}" for rank in range(len(spools)))
    first = f"select * exclude (rank) from ({union}) qualify row_number() over (partition by uri order by rank) = 1"
    return (
        Spool(LISTING, *(rows.cast(LISTING) for rows in sql.batches(first, {}, **tables))) if tables else Spool(LISTING)
    )


def _containers(objects: Spool, source: Source, listing: Listing) -> Spool:
    endings, found = ENDINGS[source.kind], Spool(LISTING)
    # Another column is another content.
    columns = [source.column, source.caption_column]
    state = f"#{fingerprint_of(columns)}" if any(columns) else ""
    for block in objects.batches():
        mine = block.filter(pc.match_substring_regex(pc.utf8_lower(block["uri"]), _any_ending(endings)))
        etags = pc.binary_join_element_wise(mine["etag"], state, "") if state else mine["etag"]
        said = {"uri": mine["uri"], "etag": etags, "size_bytes": mine["size_bytes"], "refused": mine["refused"]}
        told = {"container": source.kind, "column": source.column, "caption_column": source.caption_column}
        said |= {name: pa.repeat(pa.scalar(value, pa.string()), mine.num_rows) for name, value in told.items()}
        found.add(pa.table([said.get(f.name, pa.nulls(mine.num_rows, f.type)) for f in LISTING], schema=LISTING))
    if not found.num_rows:
        raise FileNotFoundError(f"nothing there that ends in {', '.join(endings)}, as kind '{source.kind}' asks")
    if other := objects.num_rows - found.num_rows:
        listing.ignored[f"no {source.kind} file"] += other
    return found


def _any_ending(endings: tuple[str, ...]) -> str:
    return f"({'|'.join(re.escape(ending) for ending in endings)})$"


def _files(objects: Spool, source: Source, listing: Listing) -> Spool:
    lists = _caption_lists(objects, source)
    texts, found = _captions_by_uri(lists, listing)
    tables: dict[str, sql.Source] = {"entries": objects.source(), "texts": texts.source()}
    values = {"lists": lists}
    for row in sql.ask(
        f"{_ROLES} select role, count(*) as count from roles group by role", values, **tables
    ).to_pylist():
        if row["role"] is not None:
            listing.ignored[row["role"]] += row["count"]
    for rows in sql.batches(f"{_ROLES} {_CAPTIONED}", values, **tables):
        found.add(rows.cast(LISTING))
    return found


def _caption_lists(objects: Spool, source: Source) -> list[str]:
    """URIs of the files that hold captions of others, the deepest last: it is the nearest to the media, and wins."""
    is_one = pc.ends_with(pc.field("uri"), f"/{CAPTIONS_NAME}") & pc.field("refused").is_null()
    there = sorted(objects.read(is_one)["uri"].to_pylist())
    elsewhere = [storage.absolute(source.captions)] if source.captions else []
    return sorted(dict.fromkeys([*elsewhere, *there]), key=lambda uri: uri.count("/"))


def _captions_by_uri(uris: list[str], listing: Listing) -> tuple[Spool, Spool]:
    """Rows of _TEXTS, captions that stand in lists; and rows of LISTING, of lists with malformed lines."""
    texts, rows = Spool(_TEXTS), Spool(LISTING)
    block: list[dict[str, str | int]] = []

    def keep() -> None:
        texts.add(pa.Table.from_pylist(block, schema=_TEXTS))
        block.clear()

    def malformed(uri: str, data: bytes) -> Iterator[tuple[int, RowError]]:
        """Keeps the other lines."""
        folder = uri.rsplit("/", 1)[0]
        for number, line in lines.captions(lines.bounded(io.BytesIO(data))):
            if not isinstance(line, RowError):
                name, caption = line
                named = storage.join(folder, name)
                if caption and _is_text(named):
                    told = {"uri": named, "caption": caption, "etag": fingerprint_of(caption)}
                    block.append(told | {"number": texts.num_rows + len(block)})
                    if len(block) >= _BLOCK_ROWS:
                        keep()
                continue
            listing.num_malformed += 1
            if len(listing.malformed) < NAMED:
                listing.malformed.append(f"{uri}, line {number}")
            yield number, line

    for uri in uris:
        data = storage.read_bytes(uri)
        if told := list(lines.told(malformed(uri, data))):
            etag = fingerprint_of(told)
            row = {"uri": uri, "etag": etag, "size_bytes": len(data), "container": "captions"}
            rows.add(pa.Table.from_pylist([row], schema=LISTING))
    keep()
    return texts, rows


def _is_text(uri: str) -> bool:
    """False for half a character, which JSON can write and no file be called."""
    try:
        uri.encode()
    except UnicodeEncodeError:
        return False
    return True


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
