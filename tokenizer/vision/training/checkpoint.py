"""The checkpoint of a training: one file, written whole or not at all, and gone on from only as it was written."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tokenmill import storage
from tokenmill.storage.checksums import check_zip
from tokenmill.storage.errors import DamagedError, TrainingError
from tokenmill.storage.failures import as_damaged

_NAME = "checkpoint.pt"


def uri_of(out: str) -> str:
    """Where the checkpoint of a training into `out` is."""
    return storage.join(out, _NAME)


def save(out: str, state: dict[str, Any]) -> None:
    """`state`: tensors, numbers and containers of them; with the training's `identity` and the `step` it is at."""
    written = io.BytesIO()
    torch.save(state, written)
    storage.write_bytes(uri_of(out), written.getvalue())


def load(out: str) -> dict[str, Any] | None:
    """What was saved in `out`, if there is something. Raises TrainingError where it is damaged."""
    if not storage.exists(uri_of(out)):
        return None
    data = io.BytesIO(storage.read_bytes(uri_of(out)))
    with fit_to_use(out):
        check_zip(data)
        state = torch.load(data, map_location="cpu", weights_only=True)
        return state | {"identity": str(state["identity"]), "step": int(state["step"])}


@contextmanager
def fit_to_use(out: str) -> Iterator[None]:
    """While the checkpoint in `out` is used: what it does not fit becomes a TrainingError that names it."""
    try:
        with as_damaged(uri_of(out)):
            yield
    except DamagedError as error:
        raise TrainingError(
            f"{error.uri}: damaged ({error.reason}); delete it, and the training begins anew"
        ) from error
