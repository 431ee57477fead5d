"""A folder or a prefix -> its entries. What is odd about one is said of that entry, and never ends the walk.

Links are followed inside their source, unless its config allows more. An entry that is no readable file is `refused`
with a reason: dangling_link, link_loop, outside_source, not_a_file, no_permission. What no one may look into, a folder
without permission, is told, so that nothing in it is taken for gone.
"""

import os
import queue
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple, TypeVar

from tokenmill import storage
from tokenmill.storage import object_store

_BLOCK = 1_000  # entries that a listing thread hands over at once
_T = TypeVar("_T")


class Entry(NamedTuple):
    """An object, or what stands where one could. `etag` changes with its state."""

    uri: str
    etag: str
    size_bytes: int
    refused: str | None = None  # reason: detail
    is_unseen: bool = False  # a folder whose content is not known


class SilentError(OSError):
    """A disk that gives no sign of life."""


def walk(uri: str, may_be_file: bool, follow_links: bool = False, limit_s: float | None = None) -> Iterator[Entry]:
    """All entries below `uri`, a local folder or an s3:// prefix; a single file too where `may_be_file`.

    Raises OSError for a folder that cannot be listed, SilentError after `limit_s` without an entry, and botocore's
    errors.
    """
    if storage.is_remote(uri):
        yield from _walk_s3(uri, may_be_file)
    else:
        yield from watched(_walk_local(uri, may_be_file, follow_links), limit_s, uri)


def _walk_local(folder: str, may_be_file: bool, follow_links: bool) -> Iterator[Entry]:
    state = os.stat(folder)
    if not stat.S_ISDIR(state.st_mode):
        if not may_be_file:
            raise NotADirectoryError("this is a file; give the folder that holds it")
        yield _file(folder, state)
        return
    root = os.path.realpath(folder)
    open_ = [(folder, frozenset([(state.st_dev, state.st_ino)]))]
    while open_:
        path, above = open_.pop()
        try:
            with os.scandir(path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except PermissionError:
            yield _refused(path, "no_permission", "a folder that may not be listed", is_unseen=True)
            continue
        except FileNotFoundError:
            continue  # it went while others were listed
        below = []
        for entry in found:
            seen = _look(entry, root, above, follow_links)
            if isinstance(seen, Entry):
                yield seen
            elif seen is not None and not entry.name.startswith("."):
                below.append((entry.path, above | {(seen.st_dev, seen.st_ino)}))
        open_ += reversed(below)


def _look(
    entry: os.DirEntry[str], root: str, above: frozenset[tuple[int, int]], follow_links: bool
) -> Entry | os.stat_result | None:
    """A folder to descend into, or the entry; None where it went meanwhile."""
    path = entry.path
    try:
        if not entry.is_symlink():
            state = entry.stat(follow_symlinks=False)
            return state if stat.S_ISDIR(state.st_mode) else _file(path, state)
        target = os.path.realpath(path)
        if not follow_links and target != root and not target.startswith(root.rstrip("/") + "/"):
            return _refused(path, "outside_source", "a link that leaves the source; sources.N.follow_links allows it")
        state = os.stat(path)
    except FileNotFoundError:
        return _refused(path, "dangling_link", "a link to nothing") if os.path.islink(path) else None
    except PermissionError:
        return _refused(path, "no_permission", "it may not be looked at")
    except OSError as error:
        if error.errno == 40:  # ELOOP
            return _refused(path, "link_loop", "links that lead back to themselves")
        raise
    if not stat.S_ISDIR(state.st_mode):
        return _file(path, state)
    if (state.st_dev, state.st_ino) in above:
        return _refused(path, "link_loop", "a link to a folder that it stands in")
    return state


def _file(path: str, state: os.stat_result) -> Entry:
    if not stat.S_ISREG(state.st_mode):
        return _refused(path, "not_a_file", "a pipe, a socket or a device")
    if not os.access(path, os.R_OK):
        return _refused(path, "no_permission", "it may not be read")
    return Entry(storage.local_uri(path), f"{state.st_mtime_ns}-{state.st_size}", state.st_size)


def _refused(path: str, reason: str, detail: str, is_unseen: bool = False) -> Entry:
    return Entry(storage.local_uri(path), reason, 0, f"{reason}: {detail}", is_unseen)


def _walk_s3(uri: str, may_be_file: bool) -> Iterator[Entry]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    is_file = may_be_file and "." in prefix.rpartition("/")[2]
    pages = (
        object_store.client()
        .get_paginator("list_objects_v2")
        .paginate(Bucket=bucket, Prefix=prefix if is_file else f"{prefix}/" if prefix else "")
    )
    empty = True
    for page in pages:
        for item in page.get("Contents", []):
            if is_file and item["Key"] != prefix and not item["Key"].startswith(f"{prefix}/"):
                continue
            empty = False
            if not item["Key"].endswith("/"):
                yield Entry(f"s3://{bucket}/{item['Key']}", item["ETag"].strip('"'), item["Size"])
    if empty:
        raise FileNotFoundError("nothing under this prefix")


def watched(items: Iterator[_T], limit_s: float | None, what: str) -> Iterator[_T]:
    """`items`, made by a thread of its own. Raises what they raise, and SilentError when none comes for `limit_s`.

    A disk that hangs holds its thread for ever; nothing else waits for it.
    """
    if limit_s is None:
        yield from items
        return
    blocks: queue.Queue[list[_T] | BaseException | None] = queue.Queue(maxsize=16)
    is_over = threading.Event()

    def give(block: list[_T] | BaseException | None) -> None:
        while not is_over.is_set():
            with suppress(queue.Full):
                blocks.put(block, timeout=1.0)
                return

    def work() -> None:
        end: BaseException | None = None
        block: list[_T] = []
        try:
            for item in items:
                block.append(item)
                if len(block) >= _BLOCK or blocks.empty():
                    give(block)
                    block = []
                if is_over.is_set():
                    return
        except BaseException as error:
            end = error
        give(block)
        give(end)

    threading.Thread(target=work, name="listing", daemon=True).start()
    try:
        while True:
            try:
                got = blocks.get(timeout=limit_s)
            except queue.Empty:
                raise SilentError(f"{what}: no sign of life for {limit_s:g} s") from None
            if got is None:
                return
            if isinstance(got, BaseException):
                raise got
            yield from got
    finally:
        is_over.set()
