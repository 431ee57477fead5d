"""The clients of an S3 object store: pyarrow for bytes, boto3 for lists and conditional puts, delta-rs for table logs.

All three take address and credentials from the AWS variables, try a request `ATTEMPTS` times with growing pauses, and
give up on a store that is silent, so that a command ends with a message and never hangs. Checksums that gateways older
than 2025 refuse are sent only where S3 requires them.
"""

import os
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pyarrow import fs as pafs

from tokenmill.storage import failures
from tokenmill.storage.errors import UserError

ATTEMPTS = 10  # too few: half a minute's overload ends a run; too many: a wrong address is noticed late
_CHECK_ATTEMPTS = 3
_PAUSES_S = (0.1, 0.5, 2.0, 8.0)
CONNECT_S = 5.0
SILENCE_S = 30.0  # longest wait for the next byte

_T = TypeVar("_T")


class StoreError(UserError):
    """The store failed, and went on failing when retried; says nothing about the object itself."""


def endpoint() -> str | None:
    """The address of the store; null is AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def region() -> str:
    """The region of the buckets."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def store() -> str:
    """The store in words."""
    return endpoint() or f"AWS, region {region()}"


def arrow() -> pafs.S3FileSystem:
    """pyarrow's file system of the store."""
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        os.environ.setdefault(name, "when_required")
    return _arrow(_variables())


def _variables() -> tuple[tuple[str, str], ...]:
    """All that a client is made of: it is made anew when these change."""
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


@lru_cache(maxsize=8)
def _arrow(_: tuple[tuple[str, str], ...]) -> pafs.S3FileSystem:
    address = endpoint()
    where: dict[str, Any] = {}
    if address:
        parts = urlsplit(address)
        where = {"endpoint_override": parts.netloc, "scheme": parts.scheme}
    return pafs.S3FileSystem(
        region=region(),
        connect_timeout=CONNECT_S,
        request_timeout=SILENCE_S,
        # The standard strategy shares a quota of retries: at 40 % faults it soon gave up at once, this one never.
        retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=ATTEMPTS),
        **where,
    )


def client(attempts: int = ATTEMPTS) -> Any:
    """A boto3 client of the store."""
    return _client(attempts, _variables())


@lru_cache(maxsize=8)
def _client(attempts: int, _: tuple[tuple[str, str], ...]) -> Any:
    import boto3  # half a second that workers, which only read and write bytes, do not pay
    from botocore.config import Config

    settings = Config(
        connect_timeout=CONNECT_S,
        read_timeout=SILENCE_S,
        retries={"mode": "standard", "total_max_attempts": attempts},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint(), region_name=region(), config=settings)


def delta_options() -> dict[str, str]:
    """delta-rs' storage options beyond what it reads from the AWS variables by itself."""
    options = {
        "aws_region": region(),
        "connect_timeout": f"{CONNECT_S:g}s",
        "timeout": f"{SILENCE_S:g}s",
        "max_retries": str(ATTEMPTS - 1),
        "retry_timeout": "40s",
        "backoff_config.init_backoff": "100ms",
        "backoff_config.max_backoff": "10s",
    }
    if address := endpoint():
        options |= {"aws_endpoint": address, "allow_http": str(address.startswith("http://")).lower()}
    return options


def check(uri: str) -> None:
    """See in a second or two whether the bucket of `uri` answers. Raises StoreError with the cause and what to do."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    try:
        client(attempts=_CHECK_ATTEMPTS).list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except (BotoCoreError, ClientError) as error:
        raise StoreError(explained(uri, error)) from error


def drop_uploads(uri: str, before_s: float, dry_run: bool) -> tuple[int, int]:
    """Drop (or with `dry_run` only count) uploads in parts below `uri` that were begun before `before_s`, in seconds
    since 1970, and never completed: no list of objects shows them, and the store keeps their bytes. Returns how many,
    and their bytes. Raises StoreError.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    store = client()
    num_uploads = num_bytes = 0
    try:
        pages = store.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        for upload in [upload for page in pages for upload in page.get("Uploads", [])]:
            if upload["Initiated"].timestamp() >= before_s:
                continue
            which = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            parts = store.get_paginator("list_parts").paginate(**which)
            num_bytes += sum(part["Size"] for page in parts for part in page.get("Parts", []))
            num_uploads += 1
            if not dry_run:
                store.abort_multipart_upload(**which)
    except (BotoCoreError, ClientError) as error:
        raise StoreError(explained(uri, error)) from error
    return num_uploads, num_bytes


def explained(uri: str, error: Exception) -> str:
    """A botocore error on `uri` as one line: what is wrong, and what to do."""
    if found := failures.find(error):
        bucket = uri.removeprefix("s3://").partition("/")[0]
        return failures.line(*found, where=uri, bucket=bucket, store=store())
    return f"{uri}: {' '.join(str(error).split())}; check the address and the AWS_* variables"


def is_odd(uri: str) -> bool:
    """Whether the key is legal and yet no path to pyarrow: with an empty part, or `.` or `..` for one."""
    return any(part in ("", ".", "..") for part in uri.removeprefix("s3://").split("/"))


def odd_chunks(uri: str, chunk_bytes: int | None, offset: int = 0, num_bytes: int | None = None) -> Iterator[bytes]:
    """The bytes of an object with an odd key, by boto3: from `offset` on, at most `num_bytes`, one request a chunk.

    Raises as `read` does.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    where = {"Bucket": bucket, "Key": key}
    try:
        size = client().head_object(**where)["ContentLength"]
        end = size if num_bytes is None else min(size, offset + num_bytes)
        for start in range(offset, end, chunk_bytes or max(size, 1)):
            last = min(end, start + (chunk_bytes or size)) - 1
            yield client().get_object(**where, Range=f"bytes={start}-{last}")["Body"].read()
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in ("404", "NoSuchKey"):
            raise FileNotFoundError(f"{uri}: not there") from None
        if code in ("403", "AccessDenied"):
            raise PermissionError(f"{uri}: {code}") from None
        raise StoreError(explained(uri, error)) from error
    except BotoCoreError as error:
        raise StoreError(explained(uri, error)) from error


def with_retries(call: Callable[[], _T], errors: tuple[type[Exception], ...], final: tuple[type[Exception], ...]) -> _T:
    """What `call` returns, called again after growing pauses when it raises one of `errors` that is none of `final`.

    For what the clients do not repeat themselves: delta-rs an answer that broke off, pyarrow a refusal whose text is
    longer than what was asked for.
    """
    for pause_s in _PAUSES_S:
        try:
            return call()
        except final:
            raise
        except errors:
            time.sleep(pause_s)
    return call()


def read(uri: str, call: Callable[[], _T]) -> _T:
    """What a call of pyarrow that reads `uri` returns, tried several times.

    Raises FileNotFoundError and PermissionError for an object that cannot be had, StoreError for a store that fails.
    """

    def told_apart() -> _T:
        try:
            return call()
        except OSError as error:
            if "ACCESS_DENIED" in str(error):
                raise PermissionError(f"{uri}: {error}") from error
            raise

    try:
        return with_retries(told_apart, (OSError,), (FileNotFoundError, PermissionError))
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:
        what = failures.advice(error, f"check the network and the AWS_* variables, then {failures.AGAIN}")
        raise StoreError(f"{uri}: the store failed again and again: {error}; {what}") from error
