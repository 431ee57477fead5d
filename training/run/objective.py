"""What a job learns from: the corpus, or choices between drawings; its loss, and who reads its packs."""

from tokenmill.training.data.loader import Loader
from tokenmill.training.data.pairs import PairLoader
from tokenmill.training.job import TrainJob
from tokenmill.training.lora import put_lora
from tokenmill.training.model.model import PackLoss, build_model
from tokenmill.training.model.preference import PreferenceLoss
from tokenmill.training.parallel.workers import Workers
from tokenmill.training.run.prepare import Prepared
from tokenmill.training.run.reference import set_reference


def objective_of(job: TrainJob, ready: Prepared, recompute: bool) -> PackLoss:
    """The job's model, as it starts, and the forward pass of its packs that ends in its loss. Raises TrainingError."""
    config = job.config
    model_config = config.model.model_copy(update={"init_from": job.init_from})
    lm = build_model(model_config, ready.layout.vocabulary, config.data.context_tokens, config.seed)
    if config.model.lora is not None:
        put_lora(lm, config.model.lora, config.seed, "train.model.lora")
    if recompute:
        lm.activation_checkpointing_enable({"use_reentrant": False})
    if config.preferences is not None:
        return PreferenceLoss(lm, config.preferences)
    return PackLoss(lm, config.optimizer.weights)


def loader_of(
    job: TrainJob, ready: Prepared, model: PackLoss, workers: Workers, start: int, cache_bytes: int
) -> Loader:
    """Who reads the packs; `start` steps are done. Every worker must call it. Raises TrainingError."""
    pack_tokens = job.config.data.pack_tokens
    if ready.pairs is not None and isinstance(model, PreferenceLoss):
        loader = PairLoader(ready.plan, ready.index, ready.pairs, ready.layout, pack_tokens)
        set_reference(job, loader, model, workers, start)
        return loader
    return Loader(ready.plan, ready.index, job.shard_uris, ready.layout, pack_tokens, cache_bytes, ready.dialogues)
