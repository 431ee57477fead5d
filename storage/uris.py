"""Where bytes live: local paths and `s3://` URIs behind the same few functions.

Every module takes a URI as a string and comes here to open it, so that a laptop's folder and a bucket are the same
code. Credentials, endpoint, retries and timeouts of a store stand in storage/object_store.py. A body that ends before
its length is an error of the store, asked for again like any other, and never a short file.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pyarrow import NativeFile, fs as pafs

from tokenmill.storage import object_store, scratch
from tokenmill.storage.errors import DamagedError

__all__ = [
    "absolute",
    "delete_file",
    "delete_folder",
    "exists",
    "is_folder",
    "filesystem",
    "is_remote",
    "join",
    "list_names",
    "local_file",
    "local_folder",
    "local_uri",
    "move",
    "read_bytes",
    "read_chunks",
    "read_json",
    "swap_bytes",
    "upload_folder",
    "write_bytes",
    "write_file",
    "write_json",
]

CHUNK_BYTES = 1 << 22
_FILE = "file://"


def is_remote(uri: str) -> bool:
    """True for `s3://bucket/key`, false for a local path."""
    return uri.startswith("s3://")


def absolute(uri: str) -> str:
    """`uri` without a trailing slash; a local path is made absolute and `~` expanded. Of `local_uri` the path."""
    if is_remote(uri):
        return uri.rstrip("/")
    if uri.startswith(_FILE):
        return os.fsdecode(unquote_to_bytes(uri.removeprefix(_FILE)))
    if "://" in uri:
        raise ValueError(f"{uri}: unknown scheme; use a local path or s3://bucket/prefix")
    return str(Path(uri).expanduser().absolute())


def local_uri(path: str) -> str:
    """A local path as text: itself, or, where its name is no UTF-8, file:// and its bytes in percent code."""
    if path.isascii() or not any("\ud800" <= c <= "\udfff" for c in path):
        return path
    return _FILE + quote_from_bytes(os.fsencode(path))


def join(uri: str, *parts: str) -> str:
    """`uri` extended by path parts."""
    return "/".join([uri.rstrip("/"), *parts])


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system of `uri` and the path inside it."""
    if is_remote(uri):
        return object_store.arrow(), uri.removeprefix("s3://")
    return pafs.LocalFileSystem(), absolute(uri)


def exists(uri: str) -> bool:
    """True when a file or folder stands at `uri`."""
    filesystem_, path = filesystem(uri)
    return filesystem_.get_file_info(path).type != pafs.FileType.NotFound


def is_folder(uri: str) -> bool:
    """True when a folder stands at `uri`."""
    filesystem_, path = filesystem(uri)
    return filesystem_.get_file_info(path).type == pafs.FileType.Directory


def read_bytes(uri: str) -> bytes:
    """All bytes of one object. Raises FileNotFoundError, OSError, and StoreError for a store that fails."""
    if is_remote(uri):
        return b"".join(_remote_chunks(uri, None))
    return Path(absolute(uri)).read_bytes()


def read_chunks(uri: str, offset: int = 0, num_bytes: int | None = None) -> Iterator[bytes]:
    """The object's bytes from `offset` on, at most `num_bytes` (None: all), in chunks of 4 MiB.

    Raises FileNotFoundError, OSError, StoreError for a store that fails.
    """
    if is_remote(uri):
        yield from _remote_chunks(uri, CHUNK_BYTES, offset, num_bytes)
        return
    with Path(absolute(uri)).open("rb") as file:
        file.seek(offset)
        left = num_bytes
        while chunk := file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left)):
            left = None if left is None else left - len(chunk)
            yield chunk


def _remote_chunks(uri: str, chunk_bytes: int | None, offset: int = 0, num_bytes: int | None = None) -> Iterator[bytes]:
    """Chunks by one request each (None: one for all); a stream of pyarrow's would make one for each 256 KiB."""
    if object_store.is_odd(uri):
        yield from object_store.odd_chunks(uri, chunk_bytes, offset, num_bytes)
        return
    filesystem_, path = filesystem(uri)
    with object_store.read(uri, lambda: filesystem_.open_input_file(path)) as file:
        size = file.size()
        end = size if num_bytes is None else min(size, offset + num_bytes)
        for start in range(offset, end, chunk_bytes or max(size, 1)):
            wanted = min(chunk_bytes or size, end - start)
            yield object_store.read(uri, partial(_read_at, file, wanted, start))


def _read_at(file: NativeFile, num_bytes: int, start: int) -> bytes:
    data = file.read_at(num_bytes, start)
    if len(data) != num_bytes:
        raise OSError(f"{len(data)} bytes where {num_bytes} were expected")
    return data


def write_bytes(uri: str, data: bytes | bytearray) -> None:
    """Write one object so that it is seen whole or not at all (rename locally, one put on S3)."""
    filesystem_, path = filesystem(uri)
    if is_remote(uri):
        with filesystem_.open_output_stream(path) as stream:
            stream.write(data)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, target)


def write_file(uri: str, path: str) -> None:
    """Write a local file as one object, seen whole or not at all, without holding it in memory."""
    if is_remote(uri):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        object_store.client().upload_file(path, bucket, key)
        return
    target = Path(absolute(uri))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(path, temporary)
    os.replace(temporary, target)


def swap_bytes(uri: str, data: bytes, expected: bytes | None) -> bool:
    """Write `data` if the object holds `expected` (None: if there is no object) and say so; else change nothing.

    One conditional put on S3, a lock on the folder's disk locally: of several writers with one expectation, one wins.
    Raises OSError, and StoreError for a store that fails or refuses.
    """
    return _swap_s3(uri, data, expected) if is_remote(uri) else _swap_local(Path(absolute(uri)), data, expected)


def _swap_local(target: Path, data: bytes, expected: bytes | None) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released with the process, however it ends
        if (target.read_bytes() if target.exists() else None) != expected:
            return False
        write_bytes(str(target), data)
        return True


def _swap_s3(uri: str, data: bytes, expected: bytes | None) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError  # as in object_store.client

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    where = {"Bucket": bucket, "Key": key}
    client = object_store.client()
    conditions = [{"IfNoneMatch": "*"}]
    try:
        if expected is not None:
            found = client.get_object(**where)
            if found["Body"].read() != expected:
                return False
            # RFC 9110 puts an entity tag in quotes; Ceph 16 matches only the bare one.
            conditions = [{"IfMatch": tag} for tag in (found["ETag"], found["ETag"].strip('"'))]
        for condition in conditions:
            try:
                client.put_object(**where, Body=data, **condition)
                return True
            except ClientError as error:
                if error.response["Error"]["Code"] not in ("PreconditionFailed", "ConditionalRequestConflict", "412"):
                    raise
        return read_bytes(uri) == data  # the answer to our own put may have been lost, and the put repeated
    except (ClientError, BotoCoreError) as error:
        if isinstance(error, ClientError) and error.response["Error"]["Code"] in ("NoSuchKey", "404"):
            return False
        raise object_store.StoreError(object_store.explained(uri, error)) from error


def read_json(uri: str, *keys: str) -> Any:
    """The JSON document at `uri`; with `keys` an object that has them. Raises DamagedError for what is none, and as
    `read_bytes` does.
    """
    data = read_bytes(uri)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(uri, error) from None
    if keys and not (isinstance(document, dict) and document.keys() >= set(keys)):
        raise DamagedError(uri, f"no object with {', '.join(keys)}")
    return document


def write_json(uri: str, document: Any) -> None:
    """Write a JSON document, whole or not at all."""
    write_bytes(uri, json.dumps(document, indent=1, sort_keys=True).encode())


def list_names(uri: str) -> list[str]:
    """Base names of what stands directly under `uri`; empty when there is nothing."""
    filesystem_, path = filesystem(uri)
    found = filesystem_.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found)


def delete_folder(uri: str) -> None:
    """Remove everything under `uri`."""
    filesystem_, path = filesystem(uri)
    filesystem_.delete_dir(path)


def upload_folder(folder: Path, uri: str) -> None:
    """Copy a local folder's files (recursively) to `uri`."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            write_bytes(join(uri, *file.relative_to(folder).parts), file.read_bytes())


@contextmanager
def local_folder(uri: str) -> Iterator[Path]:
    """A local folder with the files under `uri`: itself when local, else a temporary download."""
    if not is_remote(uri):
        yield Path(absolute(uri))
        return
    filesystem_, path = filesystem(uri)
    folder = Path(tempfile.mkdtemp(prefix="tokenmill-", dir=scratch.folder()))
    try:
        for info in filesystem_.get_file_info(pafs.FileSelector(path, recursive=True)):
            if info.type == pafs.FileType.File:
                target = folder / info.path.removeprefix(path).lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as sink:
                    sink.writelines(read_chunks(f"s3://{info.path}"))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def local_file(uri: str) -> Iterator[str]:
    """The path of a local file with the object's bytes: itself when local, else a temporary download."""
    if not is_remote(uri):
        yield absolute(uri)
        return
    with tempfile.NamedTemporaryFile(prefix="tokenmill-", dir=scratch.folder()) as spool:
        for chunk in read_chunks(uri):
            spool.write(chunk)
        spool.flush()
        yield spool.name


def move(uri: str, target: str) -> None:
    """Give one object, or a folder on a disk, another place; the folders above it are made."""
    filesystem_, path = filesystem(uri)
    _, there = filesystem(target)
    if not is_remote(target):
        filesystem_.create_dir(there.rsplit("/", 1)[0], recursive=True)
    filesystem_.move(path, there)


def delete_file(uri: str) -> None:
    """Remove one object."""
    filesystem_, path = filesystem(uri)
    filesystem_.delete_file(path)
