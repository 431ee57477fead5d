"""The plan of train: the jobs, one for each stage, on the version of the tokens that there is; nothing is written."""

from dataclasses import dataclass, replace

import pyarrow.compute as pc

from tokenmill import storage
from tokenmill.pipeline.catalog import models
from tokenmill.pipeline.catalog.models import Place
from tokenmill.pipeline.catalog.tables import COMPACTED, Catalog, CatalogError
from tokenmill.pipeline.config import RunConfig, load
from tokenmill.pipeline.refresh import fingerprints
from tokenmill.pipeline.refresh.changed_keys import Why
from tokenmill.pipeline.refresh.steps import Outlook, Step
from tokenmill.storage.identity import content_id
from tokenmill.training.job import DONE, PLAN, Drawing, TrainJob, lineage, name_of

_COMPACTED_AT_MOST = 16  # one after the other


@dataclass(frozen=True)
class TrainPlan:
    """What train is to do."""

    steps: list[Step]
    jobs: list[TrainJob] | None  # null: the version of the tokens that they train on is still to come
    is_exact: bool
    outlook: Outlook


def plan_train(config: RunConfig, catalog: Catalog, outlook: Outlook) -> TrainPlan:
    """On the version of the tokens that there is, or the one that results.

    Raises CatalogError for a version that cannot be trained on any more, ConfigError and CatalogError for a model to go
    on from that is not there.
    """

    def plan(steps: list[Step], jobs: list[TrainJob] | None) -> TrainPlan:
        return TrainPlan(steps, jobs, outlook.is_now, outlook)

    if outlook.tokens_change:
        step = Step("train", "the tokens change", None, "a model on the version that results", "checkpoints, model")
        return plan([step], None)
    if catalog.tokens.is_new:
        return plan([Step("train", "nothing: there are no tokens yet", 0)], None)
    jobs = train_jobs(config, catalog)
    num_rows = catalog.tokens.count(pc.field("reject_reason").is_null())
    return plan([_step(config, catalog, job, num_rows) for job in jobs], jobs)


def _step(config: RunConfig, catalog: Catalog, job: TrainJob, num_rows: int) -> Step:
    told = "" if job.stage is None else f"{job.stage}: "
    if storage.exists(job.at(DONE)):
        return Step("train", f"{told}nothing: trained on tokens version {job.tokens_version}", 0)
    why = told + Why(config, catalog.root).of_training(job.tokens_version)
    computes = f"a model on version {job.tokens_version}"
    if job.parent is not None:
        computes = f"the model of {name_of(job.parent)} further, on version {job.tokens_version}"
    return Step("train", why, num_rows, computes, "checkpoints, model")


def train_jobs(config: RunConfig, catalog: Catalog) -> list[TrainJob]:
    """The trainings of `config` on a pinned version of `tokens`, in their order: those that are asked for, and those
    that these start from and that are not finished.

    Raises CatalogError when that version cannot be read any more, unless it was trained on already; and for a stage
    that is asked for alone whose start is not trained.
    """
    train = config.train
    if not train.stages:
        return [_job(config, catalog, None, None)]
    starts = {train.parent_of(name) for name in train.stages}
    wanted = set(train.only or set(train.stages) - starts)
    jobs: dict[str, TrainJob] = {}
    for name in train.with_starts(wanted):
        after = train.parent_of(name)
        jobs[name] = _job(config, catalog, name, jobs[after] if after else None)
    for name in reversed(jobs):
        start = train.parent_of(name)
        if name not in wanted or start is None or jobs[start].run_uri != jobs[name].parent:
            continue  # one that continues goes on from its own
        is_done, has_start = (storage.exists(jobs[each].at(DONE)) for each in (name, start))
        if not train.only:
            wanted |= {start} if has_start or not is_done else set()
        elif not (is_done or has_start or start in wanted):
            raise CatalogError(
                f"train.stages.{name} starts from {start}, which is not trained on tokens version "
                f"{jobs[start].tokens_version}: leave --stage out, or name {start} too"
            )
    return [job for name, job in jobs.items() if name in wanted]


def _job(config: RunConfig, catalog: Catalog, name: str | None, after: TrainJob | None) -> TrainJob:
    """The training of a stage, from the table or an export of it; where a version is the one before in fewer files, and
    that was trained on or begun with, on that.
    """
    stage = config.train.stage(name)
    export = None if stage.shards is None else models.export_to_train_on(stage.shards, config.version)
    export_id = None if export is None else export.id
    parent = after.run_uri if after is not None else _trained_by(stage.model.init_from)
    given = tuple(_identity(key, uri) for key, uri in stage.files.items())
    place = Place(catalog.tokens.version, export_id, name, (*([] if parent is None else [name_of(parent)]), *given))
    if export is not None:
        place = replace(place, tokens_version=export.tokens_version)
    elif config.version is None:
        place = replace(place, tokens_version=_version(config, catalog, place))
    if stage.continues and (older := _older(config, catalog.root, place)) is not None:
        parent = older
        place = replace(place, inputs=(name_of(older), *given))
    what = models.with_dtype(catalog.root, stage.what, place, stage.resources.use_gpu)
    uri, version = place.uri(catalog.root, what), place.tokens_version
    is_done = storage.exists(storage.join(uri, DONE))
    how = config.sample
    first, *others = fingerprints.of_tokens(config).values()  # in one order on all machines
    return TrainJob(
        config=what,
        shard_uris=catalog.tokens.files(version, must_exist=not is_done) if export is None else export.shard_uris,
        codebook_size=fingerprints.codebook_size(config),
        run_uri=uri,
        tokens_version=version,
        tokens_fingerprint=first,
        equal_fingerprints=others,
        export_id=export_id,
        removed={} if export is None else export.removed,
        stage=name,
        parent=parent,
        given=list(given),
        monitor=stage.monitor,
        drawing=Drawing(
            config.tokenize.model,
            grid_h=how.grid_h,
            grid_w=how.grid_w,
            top_k=how.top_k,
            top_p=how.top_p,
            temperature=how.temperature,
            guidance=how.guidance,
        ),
    )


def _identity(key: str, uri: str) -> str:
    """Of a file's content. Raises CatalogError where there is none."""
    if not storage.exists(uri):
        raise CatalogError(f"train.{key}: {uri}: no such file; give the path of one, or an s3:// address")
    if storage.is_folder(uri):
        names = sorted(name for name in storage.list_names(uri) if name.endswith(".parquet"))
        return content_id(chunk for name in names for chunk in storage.read_chunks(storage.join(uri, name)))
    return content_id(storage.read_chunks(uri))


def _trained_by(init_from: str | None) -> str | None:
    """The newest training of the config that `init_from` names, if it names one. Raises ConfigError, CatalogError."""
    if init_from is None or not models.is_config(init_from):
        return None
    other = load(init_from)
    uri = models.newest(other.root, other.train)
    if uri is None:
        raise CatalogError(
            f"train.model.init_from: {init_from} has no trained model under {other.root} yet; run "
            f"`tokenmill run {init_from}` first"
        )
    return uri


def _older(config: RunConfig, root: str, place: Place) -> str | None:
    """What a stage goes on from that continues with new data: its newest model of a version before."""
    found = [(models.version_of(name_of(uri)) or 0, uri) for uri in models.trained(root, config.train, place.stage)]
    for version, uri in reversed(found):
        if version == place.tokens_version and len(runs := lineage(uri)) > 1:
            return storage.join(root, "training", runs[1][0])
        if version == place.tokens_version:
            return None  # trained from its start
        if version < place.tokens_version:
            return uri
    return None


def _version(config: RunConfig, catalog: Catalog, place: Place) -> int:
    stage = config.train.stage(place.stage)
    for commit in catalog.tokens.history(_COMPACTED_AT_MOST):
        version = commit["version"]
        there = replace(place, tokens_version=version)
        what = models.with_dtype(catalog.root, stage.what, there, stage.resources.use_gpu)
        uri = there.uri(catalog.root, what)
        is_begun = storage.exists(storage.join(uri, PLAN)) and catalog.tokens.is_whole(version)
        if is_begun or storage.exists(storage.join(uri, DONE)):
            return version
        if commit.get("what") != COMPACTED:
            break
    return place.tokens_version
