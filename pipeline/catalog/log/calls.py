"""Calls of delta-rs: made again where a store fails, and a panic of its own said as the error that it is."""

from collections.abc import Callable
from typing import Any

from deltalake.exceptions import DeltaError, TableNotFoundError

from tokenmill import storage
from tokenmill.storage.failures import is_panic
from tokenmill.storage.object_store import with_retries


def asked(uri: str, call: Callable[[], Any]) -> Any:
    """What a call on the table at `uri` returns. Raises what it raises, and DeltaError for a panic, as a damaged
    checkpoint causes one.
    """
    try:
        return with_retries(call, (DeltaError, OSError), (TableNotFoundError,)) if storage.is_remote(uri) else call()
    except BaseException as error:
        if is_panic(error):
            raise DeltaError(f"delta-rs gave up: {error}") from error
        raise
