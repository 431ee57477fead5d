"""Held-out documents -> their loss by kind, by place in the document, and by latent frame of clips.

Every time the same packs, without dropout, in the form that training gives them but always with their caption. Each
worker takes its packs, and sums are added over all of them. Nothing of the training changes: no number is drawn, no
gradient made, and the weights stand as they stood (tests/training/run/test_validation.py).
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule

from tokenmill.storage.run_log import Record
from tokenmill.tokenizer.sequence import Kind
from tokenmill.training.data.loader import Loader
from tokenmill.training.job import TrainJob
from tokenmill.training.pack import Pack
from tokenmill.training.parallel.workers import Workers
from tokenmill.training.run.prepare import Prepared

_CACHE_BYTES = 64 << 20  # each pack is read once, and kept as it is
_NUM_PLACES = 24  # powers of two: up to 16 million tokens
_TOLD: list[Kind] = [kind for kind in Kind if kind is not Kind.PROMPT]  # questions have no weight
_BY_PLACE: list[Kind] = [kind for kind in _TOLD if kind is not Kind.STRUCTURE]


def validation_of(job: TrainJob, ready: Prepared, workers: Workers) -> "Validation":
    """That of the documents which a job holds out."""
    assert ready.held_out is not None
    index, plan = ready.held_out
    pack_tokens = job.config.data.pack_tokens
    loader = Loader(plan, index, job.shard_uris, ready.layout, pack_tokens, _CACHE_BYTES, ready.dialogues)
    num_frames = int(index.grid[index.is_video, 0].max(initial=0))
    eof, num_packs = ready.layout.vocabulary.eof, job.monitor.validate_packs
    return Validation(loader, num_packs, num_frames, eof, workers, job.config.dtype)


class Validation:
    """Of the first `num_packs` packs of a plan, which this worker reads once and keeps."""

    def __init__(self, loader: Loader, num_packs: int, num_frames: int, eof: int, workers: Workers, dtype: str):
        self._workers, self._dtype = workers, dtype
        self._num_frames, self._eof = num_frames, eof
        self._loader, self._numbers = loader, range(min(num_packs, loader.plan.num_packs))
        self._packs: list[Pack] | None = None

    def losses(self) -> Record:
        """`val`: mean loss in nats per token, weighted as `loss` and by kind; `val_tokens`; `val_by_place`: by kind and
        place in the document, named by the first of 1, 2, 4, ... tokens; `val_by_frame`: of video codes by latent
        frame. Every worker must call it.
        """
        model = self._workers.model.eval()
        try:
            mine = torch.from_numpy(self._sums() * self._workers.is_first).to(self._workers.device)
        finally:
            model.train()
            for part in model.modules():
                if isinstance(part, FSDPModule):
                    part.reshard()  # as a backward pass leaves it
        sums = self._workers.sum(mine).cpu().numpy()
        weighted, (nll, counts) = sums[:, -1], sums[:, :-1]
        of_frame, of_place = self._num_frames, len(Kind) * _NUM_PLACES
        by_place = nll[:of_place].reshape(len(Kind), -1), counts[:of_place].reshape(len(Kind), -1)
        by_kind = [values.sum(1) for values in by_place]
        whole = _means(["loss"], weighted[:1], weighted[1:])
        told: Record = {"val": whole | _means(_names(_TOLD), *(values[_TOLD] for values in by_kind))}
        told["val_tokens"] = int(counts[:of_place].sum())
        names = [str(1 << place) for place in range(_NUM_PLACES)]
        told["val_by_place"] = {
            kind.name.lower(): places
            for kind in _BY_PLACE
            if (places := _means(names, *(values[kind] for values in by_place)))
        }
        frames = [str(frame) for frame in range(of_frame)]
        if by_frame := _means(frames, nll[of_place:], counts[of_place:]):
            told["val_by_frame"] = by_frame
        return told

    def _sums(self) -> np.ndarray:
        """float64 (2, M): sums of the loss and numbers of tokens by kind and place, then by frame; in the last column
        the weighted loss and the weight.
        """
        model, device, num_places = self._workers.model, self._workers.device, len(Kind) * _NUM_PLACES
        sums = np.zeros((2, num_places + self._num_frames + 1))
        for pack in self._mine():
            place_bins, frame_bins = self._bins(pack)
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self._dtype == "bfloat16"):
                by_token = model(*model.inputs(pack, device), by_token=True)[1]
            nll, weights = by_token.double().cpu().numpy()
            is_counted = weights > 0
            for first, num, bins in ((0, num_places, place_bins), (num_places, self._num_frames, frame_bins)):
                bins = bins[: len(nll)]
                taken = is_counted & (bins >= 0)
                sums[0, first : first + num] += np.bincount(bins[taken], nll[taken], num)
                sums[1, first : first + num] += np.bincount(bins[taken], minlength=num)
            sums[:, -1] += (nll[is_counted] @ weights[is_counted], weights.sum())
        return sums

    def _mine(self) -> Iterator[Pack]:
        """The packs of this worker, as many as those of the others: spread weights are gathered for each."""
        group, num_groups = self._workers.group, self._workers.num_groups
        if self._packs is None:
            self._packs = [self._loader.pack(number) for number in self._numbers[group::num_groups]]
        yield from self._packs
        for _ in range(-(-len(self._numbers) // num_groups) - len(self._packs)):
            yield Pack.empty()

    def _bins(self, pack: Pack) -> tuple[np.ndarray, np.ndarray]:
        """int64 (T,) twice, of what each token predicts: kind and place, then latent frame, -1 for what is no video."""
        kinds, positions = (np.roll(values, -1).astype(np.int64) for values in (pack.kinds, pack.positions))
        place = np.floor(np.log2(np.maximum(positions, 1))).astype(np.int64)
        ended = np.cumsum(pack.ids == self._eof)
        before = ended[np.maximum.accumulate(np.where(pack.positions == 0, np.arange(len(ended)), 0))]
        frame = np.roll(ended - before, -1)
        return kinds * _NUM_PLACES + place, np.where(kinds == Kind.VIDEO, frame, -1)


def _names(kinds: list[Kind]) -> list[str]:
    return [kind.name.lower() for kind in kinds]


def _means(names: list[str], sums: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Of what there was any."""
    return {name: float(total / count) for name, total, count in zip(names, sums, counts, strict=True) if count}
