"""Read listed files once, and the members of containers: bytes -> identity, kind, format.

The identity is a hash of the content, never the path: one file at two places is one medium. The kind comes from the
first bytes, never from the name. Images travel on as bytes; a video stays where it is, or, when it is remote or a
member, is copied to a folder of this worker's while it is hashed, so that it is downloaded once. A member that is known
already costs its hash, one of a list not even that.
"""

import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from pydantic import Field

from tokenmill import storage
from tokenmill.stages.fetch.config import FetchConfig, FetchPace
from tokenmill.stages.fetch.response import Response
from tokenmill.stages.fetch.urls import Fetcher
from tokenmill.stages.read.containers import Member, members
from tokenmill.stages.read.formats import HEAD_BYTES, UNSUPPORTED, extension_fits, sniff
from tokenmill.stages.read.media_bytes import WEB, fetched_uri
from tokenmill.stages.table import limits
from tokenmill.stages.table.columns import KNOWN, LISTED, MEDIA, UNPACK
from tokenmill.stages.table.rows import RowError, replace, unreadable, values_of, without
from tokenmill.storage import scratch
from tokenmill.storage.identity import Config, content_id

_DOWNLOADS_AT_ONCE = 8  # an object store answers after tens of milliseconds; local disks need no overlap
_ROWS_AT_ONCE = 32
_TOGETHER = -1  # the part of a medium that stands for it and those after it
_HELD_BYTES = 1 << 27  # of a part of a container
_AHEAD = 128  # URLs asked for while slow ones keep the order waiting


class ReadConfig(Config):
    """What is read at all."""

    max_image_bytes: int = Field(
        default=1 << 26,
        gt=0,
        description="too small: large scans are rejected as too_many_bytes; too large: a batch of them, held at once, "
        "fills the worker's memory",
    )
    max_video_bytes: int = Field(
        default=1 << 36,
        gt=0,
        description="too small: long videos are rejected as too_many_bytes; too large: one remote video fills the "
        "worker's disk",
    )


class Read:
    """LISTED rows, with UNPACK's columns or not -> all columns of MEDIA (null where not known yet) plus `content`,
    `path`, `path_is_temporary`, `ends_container`.

    `content` holds the bytes of images, `path` the local file of videos. A container becomes one row for each member;
    its last row has `ends_container`. Costs one pass over each file. Rejects: empty_file, unreadable (vanished,
    forbidden, input/output errors), unknown_format, unsupported_format, too_many_bytes, and what containers and URLs
    add. A file that could not be read has no content; its identity is a hash of its place. `fetched`: the folder that
    keeps what URLs give.
    """

    reads = LISTED
    writes = pa.schema(
        [
            *without(MEDIA, "uri", "fingerprint", "run_id"),
            pa.field("content", pa.large_binary()),
            pa.field("path", pa.string()),
            pa.field("path_is_temporary", pa.bool_()),
            pa.field("ends_container", pa.bool_()),
        ]
    )
    drops = tuple(UNPACK.names)
    rows = "more"

    def __init__(
        self,
        config: ReadConfig,
        fetched: str = "",
        fetch: FetchConfig | None = None,
        pace: FetchPace | None = None,
    ):
        self._config = config
        self._fetched = fetched
        self._folder = tempfile.TemporaryDirectory(prefix="tokenmill-read-", dir=scratch.folder())
        self._fetcher = Fetcher(fetch or FetchConfig(), pace)
        self._at_once = (pace or FetchPace()).at_once

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.concat_tables(self.stream(table))

    def stream(self, table: pa.Table) -> Iterator[pa.Table]:
        """The same in tables of a few rows, so that a tar is never held whole; at least one."""
        unpack = values_of(table, UNPACK)
        pairs = zip(unpack["container"], unpack["refused"], strict=True)
        is_container = [container is not None and refused is None for container, refused in pairs]
        start = 0
        while start < table.num_rows:
            end = start + 1
            if is_container[start]:
                yield from self._container(start, table.slice(start, 1))
            else:
                while end < min(table.num_rows, start + _ROWS_AT_ONCE) and not is_container[end]:
                    end += 1
                yield self._files(start, table.slice(start, end - start))
            start = end
        if not table.num_rows:
            yield self._result(table, [])

    def _result(self, table: pa.Table, found: list[dict[str, Any]]) -> pa.Table:
        values = {name: [row.get(name) for row in found] for name in self.writes.names}
        drops = tuple(name for name in self.drops if name in table.column_names)
        result = replace(table, self.writes, values, drops)
        order = without(MEDIA, "fingerprint", "run_id").names
        return result.select(order + [name for name in result.column_names if name not in order])

    def _files(self, start: int, table: pa.Table) -> pa.Table:
        uris, refused = table["uri"].to_pylist(), values_of(table, UNPACK)["refused"]
        found = None
        if any(storage.is_remote(uri) for uri in uris):
            found = self._together(start, uris, refused)
        if found is None:
            pairs = zip(uris, refused, strict=True)
            found = [self._alone(row, uri, why) for row, (uri, why) in enumerate(pairs, start)]
        for row, caption in zip(found, table["source_caption"].to_pylist(), strict=True):
            row["source_caption"] = caption
        return self._result(table, found)

    def _together(self, start: int, uris: list[str], refused: list[str | None]) -> list[dict[str, Any]] | None:
        """Side by side; null where one of them hung, or took too much memory: nobody knows which."""
        try:
            with limits.medium(start, _TOGETHER), ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
                return list(pool.map(self._file, uris, refused))
        except RowError:
            return None

    def _alone(self, row: int, uri: str, refused: str | None) -> dict[str, Any]:
        try:
            with limits.medium(row):
                return self._file(uri, refused)
        except RowError as rejected:
            return _nameless(uri, rejected)

    def _file(self, uri: str, refused: str | None) -> dict[str, Any]:
        if refused is not None:
            reason, _, detail = refused.partition(": ")
            return _nameless(uri, RowError(reason, detail))
        try:
            local = None if storage.is_remote(uri) else storage.absolute(uri)
            return self._identify(storage.read_chunks(uri), uri, local)
        except (OSError, ValueError, pa.ArrowException) as error:
            return _nameless(uri, unreadable(error))

    def _container(self, number: int, row: pa.Table) -> Iterator[pa.Table]:
        spec = {**row.select(LISTED.names).to_pylist()[0], **{k: v[0] for k, v in values_of(row, UNPACK).items()}}
        part: list[dict[str, Any]] = []
        held = 0
        of_urls = spec["container"] == "urls"  # hosts have their own pace, and requests their own limits
        for found in self._members(number, spec) if of_urls else _limited(self._members(number, spec), spec):
            if len(part) >= _ROWS_AT_ONCE or held > _HELD_BYTES:
                yield self._result(row.take(pa.array([0] * len(part), pa.int64())), part)
                part, held = [], 0
            part.append(found)
            held += len(found.get("content") or b"")
        if spec["only"] is None:
            if not part:
                part.append(_nameless(spec["uri"], RowError("empty_container", "no member in it")))
            part[-1]["ends_container"] = True
        yield self._result(row.take(pa.array([0] * len(part), pa.int64())), part)

    def _members(self, row: int, spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """One row for each member of the container in `row`, in order; URLs are asked for side by side."""
        known = dict(zip(spec["known_members"] or [], spec["known_ids"] or [], strict=True))
        ids = frozenset(known.values())
        only = None if spec["only"] is None else frozenset(spec["only"])
        window: deque[Future[dict[str, Any]]] = deque()
        with ThreadPoolExecutor(self._at_once) as pool:
            try:
                found = members(spec["uri"], spec["container"], spec["column"], spec["caption_column"])
                for part, member in enumerate(found, 1):
                    if only is not None and member.name not in only:
                        continue
                    if member.url is None:
                        yield from (window.popleft().result() for _ in range(len(window)))
                        yield self._member(spec["uri"], member, known, ids, (row, part))
                        continue
                    window.append(pool.submit(self._member, spec["uri"], member, known, ids, None))
                    if len(window) >= _AHEAD:
                        yield window.popleft().result()
                error = None
            except RowError as rejected:
                error = rejected
            except (OSError, MemoryError, pa.ArrowException) as failed:
                error = limits.refused_memory(failed) or unreadable(failed)
            yield from (waiting.result() for waiting in window)
        if error is not None and only is None:
            yield _nameless(spec["uri"], error)

    def _member(
        self, uri: str, member: Member, known: dict[str, str], ids: frozenset[str], at_hand: tuple[int, int] | None
    ) -> dict[str, Any]:
        """`at_hand`: as which row and part it is noted; null where others are read beside it."""
        place = {
            "member": member.name,
            "offset_bytes": member.offset,
            "size_bytes": member.size,
            "source_caption": member.caption,
            "metadata": member.metadata,
        }
        try:
            if member.error is not None:
                raise member.error
            if member.url is not None and member.name in known:
                found = _known(known[member.name])
            elif member.text is not None:
                found = _document(member.text)
            elif member.url is not None and not storage.is_remote(member.url):
                found = self._ask(member.url)
                if found["file_id"] not in ids:
                    self._keep(found)
            else:
                with limits.medium(*at_hand) if at_hand else nullcontext():
                    found = self._identify(_chunks(uri, member), _base(member.name), None, member.size)
        except RowError as rejected:
            found = _nameless(f"{uri}\n{member.name}", rejected)
        except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
            found = _nameless(f"{uri}\n{member.name}", limits.refused_memory(error) or unreadable(error))
        if found["file_id"] in ids:
            if found.get("path"):
                os.unlink(found["path"])
            found = _known(found["file_id"]) | {"source_caption": found.get("source_caption")}
        if fetched := found.pop("fetched", None):
            place["metadata"] = json.dumps(json.loads(member.metadata or "{}") | {"http": fetched}, sort_keys=True)
        return {**place, **{name: value for name, value in found.items() if value is not None}}

    def _ask(self, url: str) -> dict[str, Any]:
        """Columns of what a URL gives. Raises RowError."""

        def receive(response: Response) -> dict[str, Any]:
            headers = {"fetched_url": response.url, "etag": response.etag, "last_modified": response.last_modified}
            found = self._identify(response.chunks, _base(url), None)
            return found | {"fetched": {name: value for name, value in headers.items() if value is not None}}

        return self._fetcher.fetch(url, receive, self._config.max_video_bytes)

    def _keep(self, found: dict[str, Any]) -> None:
        """Store what a URL gave, for the phases to come."""
        target = fetched_uri(self._fetched, found["file_id"])
        if found.get("content") is not None:
            storage.write_bytes(target, found["content"])
        elif found.get("path") is not None:
            storage.write_file(target, found["path"])

    def _identify(
        self, chunks: Iterator[bytes], name: str, local: str | None, size_bytes: int | None = None
    ) -> dict[str, Any]:
        """Columns of the bytes in `chunks`, which stand in the file `local`, or in none; `size_bytes` of them if given.

        Raises RowError and what `chunks` raises.
        """
        head = b""
        while len(head) < HEAD_BYTES and (chunk := next(chunks, b"")):
            head += chunk
        kind, format_ = sniff(head[:HEAD_BYTES])
        content, path, temporary = None, None, None
        if kind == "image" and format_ not in UNSUPPORTED:
            kept = bytearray()
            read = _OnePass(head, chunks, self._config.max_image_bytes, kept.extend)
            file_id = content_id(read)
            content = bytes(kept)
        elif kind == "video" and local is None:
            path, temporary = self._spool_path(), True
            try:
                with open(path, "wb") as spool:
                    read = _OnePass(head, chunks, self._config.max_video_bytes, spool.write)
                    file_id = content_id(read)
            except BaseException:
                os.unlink(path)
                raise
        else:
            read = _OnePass(head, chunks, self._config.max_video_bytes)
            file_id = content_id(read)
            if kind == "video":
                path, temporary = local, False
        found = {
            "media_id": file_id,
            "file_id": file_id,
            "kind": kind,
            "format": format_,
            "container_format": format_ if kind == "video" else None,
            "size_bytes": read.size_bytes,
            "extension_fits": extension_fits(name, format_),
        }
        refusal = _refusal(kind, format_, read)
        if size_bytes is not None and read.size_bytes < size_bytes:
            refusal = RowError("unreadable", f"{read.size_bytes} bytes where {size_bytes} were expected")
        if refusal is None:
            return {**found, "content": content, "path": path, "path_is_temporary": temporary}
        if path is not None and temporary:
            os.unlink(path)
        return {**found, **refusal.columns}

    def _spool_path(self) -> str:
        handle, path = tempfile.mkstemp(dir=self._folder.name)
        os.close(handle)
        return path


def _limited(items: Iterator[dict[str, Any]], spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """`items` of a container, each made within the limits of a medium; ends at one that takes too much memory. What is
    found in it is noted as at hand (`_member`), the finding is not: to refuse that is to lose those after it, and a
    container whose worker died over it is divided instead.
    """
    while True:
        try:
            with limits.medium():
                item = next(items, None)
        except RowError as rejected:
            item, items = _nameless(spec["uri"], rejected), iter([])
        if item is None:
            return
        yield item


def _nameless(place: str, error: RowError) -> dict[str, Any]:
    """The row of what could not be read: its place stands for its bytes."""
    nameless = content_id([b"unreadable:", place.encode()])
    return {"media_id": nameless, "file_id": nameless, "kind": "unknown", **error.columns}


def _chunks(uri: str, member: Member) -> Iterator[bytes]:
    if member.content is not None:
        return iter([member.content])
    if member.url is not None:
        return storage.read_chunks(member.url)
    return storage.read_chunks(uri, member.offset or 0, member.size)


def _known(file_id: str) -> dict[str, Any]:
    return {"media_id": file_id, "file_id": file_id, "kind": "unknown", "reject_reason": KNOWN}


def _document(text: str) -> dict[str, Any]:
    data = text.encode(errors="replace")
    identity = content_id([b"text:", data])
    return {
        "media_id": identity,
        "file_id": identity,
        "kind": "text",
        "format": "text",
        "size_bytes": len(data),
        "source_caption": text,
    }


def _base(name: str) -> str:
    """What a member's name says of its format: a URL's path, or the name."""
    return urlsplit(name).path if name.startswith(WEB) else name


class _OnePass:
    """Iterates over a file's chunks, counts its bytes and hands chunks to `keep` until `limit_bytes` is passed."""

    def __init__(
        self, head: bytes, rest: Iterator[bytes], limit_bytes: int, keep: Callable[[bytes], object] | None = None
    ):
        self._chunks = chain([head], rest)
        self._keep = keep
        self.limit_bytes = limit_bytes
        self.size_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            limits.beat()
            self.size_bytes += len(chunk)
            if self._keep is not None and self.size_bytes <= self.limit_bytes:
                self._keep(chunk)
            yield chunk


def _refusal(kind: str, name: str | None, read: _OnePass) -> RowError | None:
    if read.size_bytes == 0:
        return RowError("empty_file", "zero bytes")
    if kind == "unknown":
        return RowError("unknown_format", "the first bytes are those of no known image or video format")
    if name in UNSUPPORTED:
        return RowError("unsupported_format", f"no decoder for {name}")
    if read.size_bytes > read.limit_bytes:
        return RowError("too_many_bytes", f"{read.size_bytes} bytes; the limit is {read.limit_bytes}")
    return None
