"""Which media a training stage's rules leave, from their stored scores."""

from tokenmill import stages, storage
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.training.job import SELECTED, TrainJob


def select_media(catalog: Catalog, job: TrainJob) -> None:
    """Write down which media `data.select` leaves, once: what a training is of does not change while it runs."""
    rules = job.config.data.select
    if not rules or storage.exists(job.at(SELECTED)):
        return
    from tokenmill.training.run.prepare import write_selected

    media = catalog.media.scan(["media_id", *stages.columns_chosen_by(rules)])
    write_selected(job, media["media_id"].filter(stages.chosen(media, rules)).to_pylist())
