"""The plan of train: the job, on the version of the tokens that there is; nothing is written."""

from dataclasses import dataclass

import pyarrow.compute as pc

from tokenmill import storage
from tokenmill.pipeline.catalog import models
from tokenmill.pipeline.catalog.tables import COMPACTED, Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.refresh import fingerprints
from tokenmill.pipeline.refresh.changed_keys import Why
from tokenmill.pipeline.refresh.steps import Outlook, Step
from tokenmill.training.job import DONE, PLAN, TrainJob

_COMPACTED_AT_MOST = 16  # one after the other


@dataclass(frozen=True)
class TrainPlan:
    """What train is to do."""

    steps: list[Step]
    job: TrainJob | None  # null: the version of the tokens that it trains on is still to come
    is_exact: bool
    outlook: Outlook


def plan_train(config: RunConfig, catalog: Catalog, outlook: Outlook) -> TrainPlan:
    """The version of the tokens that there is, or the one that results.

    Raises CatalogError for a version that cannot be trained on any more.
    """

    def plan(why: str, num_read: int | None, computes: str = "", writes: str = "") -> TrainPlan:
        step = Step("train", why, num_read, computes, writes)
        return TrainPlan([step], job, outlook.is_now, outlook)

    job = None
    if outlook.tokens_change:
        return plan("the tokens change", None, "a model on the version that results", "checkpoints, model")
    if catalog.tokens.is_new:
        return plan("nothing: there are no tokens yet", 0)
    job = train_job(config, catalog)
    if storage.exists(job.at(DONE)):
        return plan(f"nothing: trained on tokens version {job.tokens_version}", 0)
    num_rows = catalog.tokens.count(pc.field("reject_reason").is_null())
    why = Why(config, catalog.root).of_training(job.tokens_version)
    return plan(why, num_rows, f"a model on version {job.tokens_version}", "checkpoints, model")


def train_job(config: RunConfig, catalog: Catalog) -> TrainJob:
    """The training of `config` on a pinned version of `tokens`, from the table or an export of it: where a version is
    the one before in fewer files, and that was trained on or begun with, on that.

    Raises CatalogError when that version cannot be read any more, unless it was trained on already.
    """
    part, tokens = config.train, catalog.tokens
    export = None if part.shards is None else models.export_to_train_on(part.shards, config.version)
    version = _version(config, catalog) if export is None else export.tokens_version
    export_id = None if export is None else export.id
    what = models.with_dtype(catalog.root, part.what, version, export_id, part.resources.use_gpu)
    uri = models.run_uri(catalog.root, what, version, export_id)
    is_done = storage.exists(storage.join(uri, DONE))
    first, *others = fingerprints.of_tokens(config).values()  # in one order on all machines
    return TrainJob(
        config=what,
        shard_uris=tokens.files(version, must_exist=not is_done) if export is None else export.shard_uris,
        codebook_size=fingerprints.codebook_size(config),
        run_uri=uri,
        tokens_version=version,
        tokens_fingerprint=first,
        equal_fingerprints=others,
        export_id=export_id,
        removed={} if export is None else export.removed,
    )


def _version(config: RunConfig, catalog: Catalog) -> int:
    newest = catalog.tokens.version
    if config.version is not None:
        return newest
    for commit in catalog.tokens.history(_COMPACTED_AT_MOST):
        version = commit["version"]
        what = models.with_dtype(catalog.root, config.train.what, version, None, config.train.resources.use_gpu)
        uri = models.run_uri(catalog.root, what, version)
        is_begun = storage.exists(storage.join(uri, PLAN)) and catalog.tokens.is_whole(version)
        if is_begun or storage.exists(storage.join(uri, DONE)):
            return version
        if commit.get("what") != COMPACTED:
            break
    return newest
