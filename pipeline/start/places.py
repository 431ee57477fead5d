"""The root and the sources of a config -> whether they can be read and written, each as (what, detail, remedy)."""

import os
import uuid
from collections.abc import Iterator

from botocore.exceptions import BotoCoreError, ClientError

from tokenmill import storage
from tokenmill.pipeline.config import ConfigError, RunConfig
from tokenmill.pipeline.refresh.sources import check_sources
from tokenmill.storage import object_store

_SILENT_S = 30.0
_Found = tuple[str, str, str]


def look_at_places(config: RunConfig) -> Iterator[_Found]:
    """The root first; remedy is empty where all is well."""
    yield from _bucket(config.root) if storage.is_remote(config.root) else _folder(config.root)
    for number, source in enumerate(config.sources):
        what = f"sources.{number}"
        try:
            check_sources([source], _SILENT_S)
        except ConfigError as error:
            said = str(error).removeprefix("sources.0.uri: ")
            yield what, said, "mend the address, or give the right to list and read it"
        else:
            yield what, f"{source.uri}: can be listed", ""


def _folder(root: str) -> Iterator[_Found]:
    root = storage.absolute(root)
    there = root
    while not os.path.isdir(there):  # the first run makes what is missing
        if os.path.exists(there):
            yield "root", f"{there}: is no folder", "give a folder"
            return
        there = os.path.dirname(there)
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        yield "root", f"{there}: may not be written", "give another root, or the right to write there"
    else:
        yield "root", f"{root}: {'can be written' if there == root else f'will be made in {there}'}", ""


def _bucket(root: str) -> Iterator[_Found]:
    """List, put, put only where nothing is (which commits of tables need), read, delete."""
    bucket, _, prefix = root.removeprefix("s3://").rstrip("/").partition("/")
    key = "/".join(filter(None, (prefix, f".doctor-{uuid.uuid4().hex}")))
    client = object_store.client(3)
    name = "list"
    try:
        client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        name = "put"
        client.put_object(Bucket=bucket, Key=key, Body=b"tokenmill doctor", IfNoneMatch="*")
        name = "conditional put"
        try:
            client.put_object(Bucket=bucket, Key=key, Body=b"again", IfNoneMatch="*")
            remedy = "the store overwrites: two runs could both commit; use one that heeds If-None-Match"
            yield "root: conditional put", f"{root}: a second put was taken", remedy
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
                raise
        name = "read"
        client.get_object(Bucket=bucket, Key=key)["Body"].read()
        name = "delete"
        client.delete_object(Bucket=bucket, Key=key)
    except (ClientError, BotoCoreError, object_store.StoreError) as error:
        said = object_store.explained(root, error) if isinstance(error, ClientError | BotoCoreError) else str(error)
        yield f"root: {name}", said, f"give the right to {name} there, or check AWS_ENDPOINT_URL and the AWS_ keys"
    else:
        yield "root", f"{root}: list, put, conditional put, read, delete", ""
