"""A state of tensors <-> a folder of safetensors, written by all workers at once: `torch.distributed.checkpoint` (DCP).

    shard-00001-model-00001-of-00002.safetensors, ...    the parts that worker 1 holds
    tensors.json      dtype and shape of every tensor, and which file holds which part of it
    checksums.json    of all of these files

A tensor that FSDP2 spread is written by each worker in part, one that all hold by one of them, so each writes an equal
share and nobody holds the whole. Any number of workers reads it: each takes the parts that it needs, from files that
are checked first. DCP's own `.metadata` is a pickle, which whoever reads it executes; tensors.json takes its place.
"""

import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch.distributed.checkpoint import FileSystemReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from tokenmill import storage
from tokenmill.storage import scratch
from tokenmill.storage.checksums import NAME, checksum
from tokenmill.storage.errors import DamagedError

TENSORS = "tensors.json"
FILE_BYTES = 1 << 28  # a file is one copy more in memory while it is written, and holds Python up meanwhile


class _Written(NamedTuple):
    """A file, as its writer tells the first worker."""

    name: str
    checksum: dict[str, Any]


class Writer(HuggingFaceStorageWriter):
    """Writes one state to `uri`, a path or an s3:// prefix; what stood there is deleted. `on_whole` is called by the
    first worker when all is written.
    """

    def __init__(self, uri: str, tensors: Mapping[str, torch.Tensor], world: int, on_whole: Callable[[], None]):
        self._uri, self._on_whole = uri, on_whole
        self._spool: Any = None
        if storage.is_remote(uri):
            self._spool = tempfile.TemporaryDirectory(prefix="tokenmill-", dir=scratch.folder())
        folder = self._spool.name if self._spool else storage.absolute(uri)
        super().__init__(folder, fqn_to_index_mapping=_file_numbers(tensors, world), save_distributed=True)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """By the first worker, before anyone writes."""
        if storage.exists(self._uri):
            storage.delete_folder(self._uri)
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """This worker's files."""
        folder = Path(self.path)
        folder.mkdir(parents=True, exist_ok=True)
        results = super().write_data(plan, planner).value()
        written: dict[str, _Written] = {}
        for name in sorted({result.storage_data.relative_path for result in results}):
            written[name] = _Written(name, checksum(str(folder / name)))
            if self._spool:
                storage.write_file(storage.join(self._uri, name), str(folder / name))
                (folder / name).unlink()
        done: Future[list[WriteResult]] = Future()
        done.set_result(
            [replace(result, storage_data=written[result.storage_data.relative_path]) for result in results]
        )
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """By the first worker, when all have written."""
        files = {result.index: result.storage_data for result in chain.from_iterable(results)}
        tensors = {
            name: {
                "dtype": str(tensor.properties.dtype).removeprefix("torch."),
                "shape": list(tensor.size),
                "parts": [
                    [files[MetadataIndex(name, part.offsets)].name, list(part.offsets), list(part.sizes)]
                    for part in tensor.chunks
                    if math.prod(part.sizes)
                ],
            }
            for name, tensor in metadata.state_dict_metadata.items()
            if isinstance(tensor, TensorStorageMetadata)
        }
        storage.write_json(storage.join(self._uri, TENSORS), tensors)
        known = {file.name: file.checksum for file in files.values()}
        known[TENSORS] = checksum(storage.join(self._uri, TENSORS))
        storage.write_json(storage.join(self._uri, NAME), known)
        self._on_whole()


class Reader(FileSystemReader):
    """Reads from a folder of `Writer`'s. Raises DamagedError for a file that is not as it was written."""

    def __init__(self, uri: str):
        super().__init__(uri)
        self._uri = uri
        if not storage.exists(known := storage.join(uri, NAME)):
            raise DamagedError(known)
        self._known: dict[str, Any] = storage.read_json(known, TENSORS)
        with self._checked(TENSORS) as path:
            self.tensors: dict[str, Any] = storage.read_json(path)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What there is, and where."""
        tensors: dict[str, Any] = {}
        files: dict[MetadataIndex, str] = {}
        for name, tensor in self.tensors.items():
            chunks = [ChunkStorageMetadata(torch.Size(at), torch.Size(sizes)) for _, at, sizes in tensor["parts"]]
            properties = TensorProperties(dtype=getattr(torch, tensor["dtype"]))
            tensors[name] = TensorStorageMetadata(properties, torch.Size(tensor["shape"]), chunks)
            files |= {MetadataIndex(name, torch.Size(at)): file for file, at, _ in tensor["parts"]}
        return Metadata(state_dict_metadata=tensors, storage_data=files)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """What this worker needs."""
        by_file: dict[str, list[Any]] = defaultdict(list)
        for item in plan.items:
            by_file[self.storage_data[item.storage_index]].append(item)
        for name, items in by_file.items():
            with self._checked(name) as path, safe_open(path, framework="pt") as file:
                for item in items:
                    spans = zip(item.storage_offsets, item.lengths, strict=True)
                    part = file.get_slice(item.storage_index.fqn)[tuple(slice(at, at + size) for at, size in spans)]
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(part)
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @contextmanager
    def _checked(self, name: str) -> Iterator[str]:
        """The path of a local file with the bytes that were written under that name."""
        uri = storage.join(self._uri, name)
        if name not in self._known or not storage.exists(uri):
            raise DamagedError(uri)
        with storage.local_file(uri) as path:
            if checksum(path) != self._known[name]:
                raise DamagedError(uri)
            yield path


def _file_numbers(tensors: Mapping[str, torch.Tensor], world: int) -> dict[str, int]:
    """Tensor -> number of the file that it stands in, of each worker that writes of it; about FILE_BYTES each."""
    numbers, num_bytes = {}, 0
    for name, tensor in tensors.items():
        numbers[name] = 1 + num_bytes // FILE_BYTES
        num_bytes += tensor.numel() * tensor.element_size() // world
    return numbers
