"""The root and the sources of a config -> whether they can be read and written, by doing what a run would do."""

import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from tokenmill import storage
from tokenmill.pipeline.config import ConfigError, RunConfig
from tokenmill.pipeline.refresh.sources import check_sources
from tokenmill.pipeline.refresh.walk import walk
from tokenmill.pipeline.start.wanted import Finding
from tokenmill.storage import object_store

_SILENT_S = 30.0
_LOOKED_AT = 20  # entries of a source, for one that may be read
_FIRST, _SECOND = b"tokenmill doctor", b"tokenmill doctor again"
_NO_TAG = f'"{"0" * 32}"'  # of no bytes


def look_at_places(config: RunConfig) -> Iterator[Finding]:
    """The root first."""
    yield from _bucket(config.root) if storage.is_remote(config.root) else _folder(config.root)
    for number, source in enumerate(config.sources):
        what = f"sources.{number}"
        try:
            check_sources([source], _SILENT_S)
            uri = storage.absolute(source.uri)
            detail = _read_one(uri, source.kind != "files", source.follow_links)
        except ConfigError as error:
            said = str(error).removeprefix("sources.0.uri: ")
            yield Finding(what, "fails", said, "mend the address, or give the right to list and read it")
        except (OSError, object_store.StoreError) as error:
            yield Finding(what, "fails", f"{error}", "it can be listed: give the right to read its objects, too")
        else:
            yield Finding(what, "ok", f"{source.uri}: {detail}")


def _read_one(uri: str, may_be_file: bool, follow_links: bool) -> str:
    """Read a byte of the first entry that is a file. Raises OSError and StoreError."""
    for number, entry in enumerate(walk(uri, may_be_file, follow_links, _SILENT_S)):
        if entry.refused is None and entry.size_bytes:
            next(storage.read_chunks(entry.uri, 0, 1), b"")
            return "can be listed and read"
        if number >= _LOOKED_AT:
            break
    return "can be listed; no file to read among its first"


def _folder(root: str) -> Iterator[Finding]:
    root = storage.absolute(root)
    there = root
    while not os.path.isdir(there):  # the first run makes what is missing
        if os.path.exists(there):
            yield Finding("root", "fails", f"{there}: is no folder", "give a folder")
            return
        there = os.path.dirname(there)
    probe = Path(there, f".doctor-{uuid.uuid4().hex}")
    try:
        probe.write_bytes(_FIRST)
    except OSError as error:
        said = f"{there}: may not be written ({error.strerror})"
        yield Finding("root", "fails", said, "give another root, or the right to write there")
    else:
        yield Finding("root", "ok", f"{root}: {'can be written' if there == root else f'will be made in {there}'}")
    finally:
        with suppress(OSError):
            probe.unlink()


def _bucket(root: str) -> Iterator[Finding]:
    """List, then put where nothing is and where what was read stands, as commits do; read, delete."""
    uri = storage.join(root, f".doctor-{uuid.uuid4().hex}")
    name, is_there = "list", False
    try:
        object_store.check(root)
        name = "put"
        is_there = storage.swap_bytes(uri, _FIRST, None)
        name = "conditional put"
        if storage.swap_bytes(uri, _SECOND, None) or not is_there:
            remedy = "two runs could both commit: use a store that heeds If-None-Match"
            yield Finding("root: conditional put", "fails", f"{root}: a second put was taken", remedy)
        elif not storage.swap_bytes(uri, _SECOND, _FIRST) or _is_taken(uri):
            remedy = "two runs could both commit: use a store that heeds If-Match"
            yield Finding("root: conditional put", "fails", f"{root}: does not heed what stands there", remedy)
        name = "read"
        storage.read_bytes(uri)
        name = "delete"
        _delete(uri)
        is_there = False
        yield Finding("root", "ok", f"{root}: can be listed, put, read, deleted")
    except (ClientError, BotoCoreError, OSError, object_store.StoreError) as error:
        said = object_store.explained(root, error) if isinstance(error, ClientError | BotoCoreError) else str(error)
        remedy = f"give the right to {name} there, or check AWS_ENDPOINT_URL and the AWS_ keys"
        yield Finding(f"root: {name}", "fails", said, remedy)
    finally:
        if is_there:
            with suppress(ClientError, BotoCoreError):
                _delete(uri)


def _is_taken(uri: str) -> bool:
    """Whether the store takes a put on the condition of an entity tag that was never there."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        object_store.client(3).put_object(Bucket=bucket, Key=key, Body=_FIRST, IfMatch=_NO_TAG)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] in (404, 409, 412):
            return False
        raise
    return True


def _delete(uri: str) -> None:
    """Asked of the store itself: pyarrow asks for the folder above first."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    object_store.client(3).delete_object(Bucket=bucket, Key=key)
