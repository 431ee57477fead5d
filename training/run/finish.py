"""A trained model -> its folder, as transformers loads it, and done.json, which says that the run is over."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenmill import storage
from tokenmill.storage import scratch
from tokenmill.storage.checksums import NAME, checksum
from tokenmill.storage.run_log import Record, read_log
from tokenmill.tokenizer.sequence import Kind
from tokenmill.training.checkpoints.model_files import write_adapter, write_weights
from tokenmill.training.job import ADAPTER, DONE, NOT_LOSSES, TrainJob, TrainResult, is_step
from tokenmill.training.lora import save_adapter_config
from tokenmill.training.model.model import PackLoss
from tokenmill.training.run.prepare import Prepared

_REPORTED_LINES = 20  # of the log: the final losses are their mean


def finish(job: TrainJob, ready: Prepared, model: PackLoss, start: int, rank: int = 0) -> None:
    """Export the model, then say that the run is done; `start` is the step that this start of it began with. Every
    worker must call it; rank 0 writes.
    """
    uri = job.at("model")
    if rank == 0 and storage.exists(uri):
        storage.delete_folder(uri)  # of an export that was interrupted
    known = write_weights(model.lm, uri, rank)
    lora = job.config.model.lora
    if lora is not None:
        write_adapter(model.lm, job.at(ADAPTER), rank)
    if rank != 0:
        return
    if lora is not None:
        with tempfile.TemporaryDirectory(prefix="tokenmill-", dir=scratch.folder()) as name:
            save_adapter_config(lora, str(job.init_from), name)
            storage.upload_folder(Path(name), job.at(ADAPTER))
    with tempfile.TemporaryDirectory(prefix="tokenmill-", dir=scratch.folder()) as name:
        model.lm.config.architectures = [type(model.lm).__name__]
        model.lm.config.save_pretrained(name)
        model.lm.generation_config.save_pretrained(name)
        ready.layout.tokenizer.save_pretrained(name)
        ready.layout.vocabulary.save(Path(name))
        known |= {path.name: checksum(str(path)) for path in Path(name).iterdir()}
        storage.upload_folder(Path(name), uri)
    storage.write_json(storage.join(uri, NAME), known)
    summary = ready.summary
    lines = read_log(job.run_uri)
    log = [line for line in lines if is_step(line)]
    result = TrainResult(
        run_uri=job.run_uri,
        model_uri=job.at("model"),
        plan=summary["plan"],
        tokens_version=job.tokens_version,
        num_steps=summary["num_steps"],
        num_documents=summary["num_documents"],
        num_tokens=summary["num_tokens"],
        excluded=summary["excluded"],
        fill=summary["fill"],
        dtype=job.config.dtype,
        losses=_mean_losses(log[-_REPORTED_LINES:]),
        seconds=lines[-1]["seconds"],
        held_out=summary.get("held_out", {}),
        validation=next((line["val"] for line in reversed(lines) if "val" in line), {}),
        resumed_from=start,
        **{name: summary[name] for name in ("num_texts", "num_text_pieces", "num_text_tokens") if name in summary},
    )
    storage.write_json(job.at(DONE), asdict(result))


def _mean_losses(records: list[Record]) -> dict[str, float]:
    named = dict.fromkeys(name for record in records for name in record)
    names = [name for name in named if name not in NOT_LOSSES and name != Kind.STRUCTURE.name.lower()]
    found: dict[str, Any] = {name: [record[name] for record in records if name in record] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items() if values}
