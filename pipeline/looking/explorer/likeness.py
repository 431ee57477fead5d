"""Media nearest to one of them, or to words, by the embeddings that curate stored (`curate.clip.store_embedding`).

All are multiplied with the one asked for, exactly: a million of 512 numbers in bfloat16 are 1 GB, mapped from a file.
"""

import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tokenmill.pipeline.looking.query import Tables
from tokenmill.storage import scratch

_ROWS = 20_000  # read at a time
_ID_BYTES = 16


class Likeness:
    """Read when it is first asked; any thread may. `clip`: name of the model, which words need."""

    def __init__(self, tables: Tables, clip: str | None):
        self._tables, self._clip = tables, clip
        self._model: Any = None
        self._found: tuple[torch.Tensor, np.ndarray] | None = None
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
        return self._nearest(embeddings[int(places[0])], count) if len(places) else []

    def of_words(self, words: str, count: int) -> list[tuple[str, float]]:
        """The same of what the model makes of words. Raises ClipLoadError, ValueError without a model."""
        from tokenmill.stages.embed.models import ClipModel

        if self._clip is None:
            raise ValueError("no model for words: name one in curate.clip.model")
        with self._lock:
            self._model = self._model or ClipModel(self._clip)
            asked = self._model.embed_texts([words])[0]
        return self._nearest(torch.from_numpy(np.asarray(asked, np.float32)).bfloat16(), count)

    def _all(self) -> tuple[torch.Tensor, np.ndarray]:
        with self._lock:
            self._found = self._found or self._read()
            return self._found

    def _nearest(self, asked: torch.Tensor, count: int) -> list[tuple[str, float]]:
        embeddings, ids = self._all()
        if not len(ids):
            return []
        best = torch.topk((embeddings @ asked[:, None]).flatten().float(), min(count, len(ids)))
        places = best.indices.tolist()
        return [(bytes(ids[place]).hex(), float(value)) for place, value in zip(places, best.values, strict=True)]

    def _read(self) -> tuple[torch.Tensor, np.ndarray]:
        """bfloat16 (N, D), and ids as bytes."""
        where = f"embedding is not null and len(media_id) = {2 * _ID_BYTES}"
        total, width = (
            self._tables.value(f"select {what} from media where {where}") or 0
            for what in ("count(*)", "max(len(embedding))")
        )
        if not total:
            return torch.empty(0, 1, dtype=torch.bfloat16), np.empty((0, _ID_BYTES), np.uint8)
        file = Path(tempfile.mkdtemp(prefix="tokenmill-", dir=scratch.folder()), "embeddings")
        mapped = torch.from_file(str(file), shared=True, size=total * width, dtype=torch.bfloat16).view(total, width)
        file.unlink()  # it lives as long as it is mapped
        ids = np.empty((total, _ID_BYTES), np.uint8)
        at = 0
        for batch in self._tables.batches(f"select media_id, embedding from media where {where}", _ROWS):
            rows = batch["embedding"]
            values = rows.values.to_numpy(zero_copy_only=False).reshape(len(rows), width)
            mapped[at : at + len(rows)] = torch.from_numpy(np.array(values, np.float32))
            joined = "".join(batch["media_id"].to_pylist())
            ids[at : at + len(rows)] = np.frombuffer(bytes.fromhex(joined), np.uint8).reshape(-1, _ID_BYTES)
            at += len(rows)
        pa.default_memory_pool().release_unused()
        return mapped[:at], ids[:at]
