"""Where bytes live: local paths and `s3://` URIs behind the same few functions.

Every module takes a URI as a string and comes here to open it, so that a laptop's folder and a bucket are the same
code. Credentials and endpoint come from the standard AWS variables (AWS_ENDPOINT_URL and so on), which pyarrow,
delta-rs and boto3 all read.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs as pafs

CHUNK_BYTES = 1 << 22


def is_remote(uri: str) -> bool:
    """True for `s3://bucket/key`, false for a local path."""
    return uri.startswith("s3://")


def absolute(uri: str) -> str:
    """`uri` without a trailing slash; a local path is made absolute and `~` expanded."""
    if is_remote(uri):
        return uri.rstrip("/")
    if "://" in uri:
        raise ValueError(f"{uri}: unknown scheme; use a local path or s3://bucket/prefix")
    return str(Path(uri).expanduser().absolute())


def join(uri: str, *parts: str) -> str:
    """`uri` extended by path parts."""
    return "/".join([uri.rstrip("/"), *parts])


@lru_cache(maxsize=8)
def _s3() -> pafs.S3FileSystem:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    if not endpoint:
        return pafs.S3FileSystem(region=region)
    parts = urlsplit(endpoint)
    return pafs.S3FileSystem(
        region=region, endpoint_override=parts.netloc, scheme=parts.scheme, allow_bucket_creation=False
    )


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system of `uri` and the path inside it."""
    if is_remote(uri):
        return _s3(), uri.removeprefix("s3://")
    return pafs.LocalFileSystem(), absolute(uri)


def exists(uri: str) -> bool:
    """True when a file or folder stands at `uri`."""
    filesystem_, path = filesystem(uri)
    return filesystem_.get_file_info(path).type != pafs.FileType.NotFound


def read_bytes(uri: str) -> bytes:
    """All bytes of one object. Raises FileNotFoundError, OSError."""
    filesystem_, path = filesystem(uri)
    with filesystem_.open_input_stream(path) as stream:
        return stream.read()


def read_chunks(uri: str) -> Iterator[bytes]:
    """The object's bytes in chunks of 4 MiB."""
    filesystem_, path = filesystem(uri)
    with filesystem_.open_input_stream(path) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def write_bytes(uri: str, data: bytes) -> None:
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


def read_json(uri: str) -> Any:
    """The JSON document at `uri`."""
    return json.loads(read_bytes(uri))


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
    folder = Path(tempfile.mkdtemp(prefix="tokenmill-"))
    try:
        for info in filesystem_.get_file_info(pafs.FileSelector(path, recursive=True)):
            if info.type == pafs.FileType.File:
                target = folder / info.path.removeprefix(path).lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                with filesystem_.open_input_stream(info.path) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, CHUNK_BYTES)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def local_file(uri: str) -> Iterator[str]:
    """The path of a local file with the object's bytes: itself when local, else a temporary download."""
    if not is_remote(uri):
        yield absolute(uri)
        return
    with tempfile.NamedTemporaryFile(prefix="tokenmill-") as spool:
        for chunk in read_chunks(uri):
            spool.write(chunk)
        spool.flush()
        yield spool.name


def delete_file(uri: str) -> None:
    """Remove one object."""
    filesystem_, path = filesystem(uri)
    filesystem_.delete_file(path)
