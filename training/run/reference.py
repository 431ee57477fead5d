"""How likely the model that preferences start from makes each drawing: computed once, before the first step."""

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from tokenmill import storage
from tokenmill.storage.errors import TrainingError
from tokenmill.storage.failures import as_damaged
from tokenmill.training.data.pairs import PairLoader
from tokenmill.training.job import TrainJob
from tokenmill.training.model.preference import PreferenceLoss
from tokenmill.training.pack import Pack
from tokenmill.training.parallel.workers import Workers
from tokenmill.training.run.tables import read_table, write_table

NAME = "reference.parquet"  # pair, chosen, rejected


def set_reference(job: TrainJob, loader: PairLoader, model: PreferenceLoss, workers: Workers, start: int) -> None:
    """Give the loader the log-probabilities, of the run's folder or of `model` as it is; every worker must call it.

    Raises TrainingError where they are gone and the model has learned already (`start`).
    """
    uri = job.at(NAME)
    known = [storage.exists(uri)]
    if workers.world > 1:  # one sees it before another
        dist.broadcast_object_list(known, src=0)
    if not known[0]:
        if start:
            raise TrainingError(f"{uri}: gone, and the model has learned since; delete {job.at('checkpoints')} too")
        _compute(uri, loader, model, workers, job.config.dtype == "bfloat16")
    with as_damaged(uri):
        table = read_table(uri)
        loader.reference[table["pair"].to_numpy()] = np.stack(
            [table[name].to_numpy() for name in ("chosen", "rejected")], axis=1
        )


def _compute(uri: str, loader: PairLoader, model: PreferenceLoss, workers: Workers, in_bf16: bool) -> None:
    packs = loader.all_pairs()
    mine: list[tuple[np.ndarray, np.ndarray]] = []
    was_training = model.training
    model.eval()
    for first in range(0, len(packs), workers.num_groups):  # as many passes on all, for weights may be spread
        is_there = first + workers.group < len(packs)
        numbers, pack = packs[first + workers.group] if is_there else (np.empty(0, np.int32), Pack.empty())
        with torch.no_grad(), torch.autocast(workers.device.type, torch.bfloat16, enabled=in_bf16):
            inputs = model.inputs(pack, workers.device)[:-1]
            found = workers.forward(*inputs, None).float().cpu().numpy()
        if len(numbers) and workers.is_first:
            mine.append((numbers, found.reshape(-1, 2)))
    model.train(was_training)
    everywhere = [mine]
    if workers.world > 1:
        everywhere = [[] for _ in range(workers.world)]
        dist.all_gather_object(everywhere, mine)
    if workers.rank == 0:
        numbers, values = (np.concatenate(part) for part in zip(*sum(everywhere, []), strict=True))
        write_table(pa.table({"pair": numbers, "chosen": values[:, 0], "rejected": values[:, 1]}), uri)
    if workers.world > 1:
        dist.barrier()
