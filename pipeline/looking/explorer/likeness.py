"""Media nearest to one of them, or to words, by the embeddings that curate stored (`curate.clip.store_embedding`).

All are multiplied with the one asked for, exactly: a million of 512 numbers in bfloat16 are 1 GB, mapped from a file
and let go of again part by part, so that they are the system's cache and not this process's memory.
"""

import mmap
import os
import tempfile
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.scans import shard_batches
from tokenmill.storage import scratch

if TYPE_CHECKING:  # imported when embeddings are first asked for
    import torch

_ROWS = 5_000  # read at a time
_MULTIPLIED_ROWS = 65_536  # at a time; whole pages, whatever the width
_ID_BYTES = 16


class _Kept:
    """bfloat16 (N, D) in a file without a name, which goes with this object."""

    def __init__(self) -> None:
        self.width, self._rows = 0, 0
        handle, path = tempfile.mkstemp(prefix="tokenmill-", dir=scratch.folder())
        os.unlink(path)
        self._file = os.fdopen(handle, "w+b")

    def add(self, rows: np.ndarray) -> None:
        """float32 (n, D)."""
        import torch

        self.width = rows.shape[1]
        self._file.write(torch.from_numpy(np.array(rows)).bfloat16().view(torch.uint8).numpy().data)
        self._rows += len(rows)

    def __len__(self) -> int:
        return self._rows

    def row(self, number: int) -> "torch.Tensor":
        """bfloat16 (D,)."""
        import torch

        self._file.flush()
        size = 2 * self.width
        return torch.frombuffer(bytearray(os.pread(self._file.fileno(), size, number * size)), dtype=torch.bfloat16)

    def products(self, asked: "torch.Tensor") -> "torch.Tensor":
        """bfloat16 (N,): each row with `asked`, bfloat16 (D,)."""
        import torch

        self._file.flush()
        found = torch.empty(len(self), dtype=torch.bfloat16)
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
            rows = torch.frombuffer(mapped, dtype=torch.bfloat16).view(-1, self.width)
            for at in range(0, len(self), _MULTIPLIED_ROWS):
                part = rows[at : at + _MULTIPLIED_ROWS]
                torch.mv(part, asked, out=found[at : at + len(part)])
                mapped.madvise(mmap.MADV_DONTNEED, 2 * self.width * at, 2 * self.width * len(part))
            del rows, part
        return found


class Likeness:
    """Of `files`, shards of media; read when it is first asked; any thread may. `clip`: name of the model, which words
    need.
    """

    def __init__(self, files: list[str], clip: str | None):
        self._files, self._clip = files, clip
        self._model: Any = None
        self._found: tuple[_Kept, np.ndarray] | None = None
        self._lock = threading.Lock()

    @property
    def takes_words(self) -> bool:
        """Whether there is a model for them."""
        return self._clip is not None

    def of_medium(self, media_id: str, count: int) -> list[tuple[str, float]]:
        """The nearest media with their cosine, itself first; none where it has no embedding."""
        embeddings, ids = self._all()
        if len(media_id) != 2 * _ID_BYTES or not len(ids):
            return []
        try:
            wanted = np.frombuffer(bytes.fromhex(media_id), f"V{_ID_BYTES}")
        except ValueError:
            return []
        places = np.flatnonzero(ids.view(f"V{_ID_BYTES}").ravel() == wanted)
        return self._nearest(embeddings.row(int(places[0])), count) if len(places) else []

    def of_words(self, words: str, count: int) -> list[tuple[str, float]]:
        """The same of what the model makes of words. Raises ClipLoadError, ValueError without a model."""
        if self._clip is None:
            raise ValueError("no model for words: name one in curate.clip.model")
        import torch

        from tokenmill.stages.embed.models import ClipModel

        with self._lock:
            self._model = self._model or ClipModel(self._clip)
            asked = self._model.embed_texts([words])[0]
        return self._nearest(torch.from_numpy(np.asarray(asked, np.float32)).bfloat16(), count)

    def _all(self) -> tuple[_Kept, np.ndarray]:
        with self._lock:
            self._found = self._found or self._read()
            return self._found

    def _nearest(self, asked: "torch.Tensor", count: int) -> list[tuple[str, float]]:
        import torch

        embeddings, ids = self._all()
        if not len(ids):
            return []
        best = torch.topk(embeddings.products(asked).float(), min(count, len(ids)))
        places = best.indices.tolist()
        return [(bytes(ids[place]).hex(), float(value)) for place, value in zip(places, best.values, strict=True)]

    def _read(self) -> tuple[_Kept, np.ndarray]:
        """All embeddings, and ids as bytes."""
        kept, ids = _Kept(), [np.empty((0, _ID_BYTES), np.uint8)]
        for file in self._files:
            for batch in shard_batches(file, ["media_id", "embedding"], _ROWS):
                if "embedding" not in batch.schema.names:
                    break  # a file of a release that had none
                rows = batch.filter(pc.is_valid(batch["embedding"]))
                if not rows.num_rows:
                    continue
                kept.add(rows["embedding"].flatten().to_numpy(zero_copy_only=False).reshape(rows.num_rows, -1))
                joined = bytes.fromhex("".join(rows["media_id"].to_pylist()))
                ids.append(np.frombuffer(joined, np.uint8).reshape(-1, _ID_BYTES))
        pa.default_memory_pool().release_unused()
        return kept, np.concatenate(ids)
