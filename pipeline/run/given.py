"""What a training stage is given besides tokens: the media that its rules leave, those that are held out together, and
dialogues with their media.
"""

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill import stages, storage
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.run.families import families
from tokenmill.training.job import KIN, PAIRED, SELECTED, SPOKEN, TrainJob


def give(catalog: Catalog, job: TrainJob) -> None:
    """Write it into the folder of the job, once: what a training is of does not change while it runs.

    Raises TrainingError for a file that holds other things, or names media that are not there.
    """
    from tokenmill.training.run.given import give_dialogues, give_families, give_pairs, give_selected

    if job.config.preferences is not None:  # drawings take the place of the corpus
        if not storage.exists(job.at(PAIRED)):
            give_pairs(job)
        return
    data = job.config.data
    if data.held_out and not storage.exists(job.at(KIN)):
        give_families(job, families(catalog, data.held_out))
    if data.select and not storage.exists(job.at(SELECTED)):
        media = catalog.media.scan(["media_id", *stages.columns_chosen_by(data.select)])
        give_selected(job, media["media_id"].filter(stages.chosen(media, data.select)).to_pylist())
    if data.dialogues is not None and not storage.exists(job.at(SPOKEN)):
        give_dialogues(job, lambda places: ids_of(catalog, places))


def ids_of(catalog: Catalog, places: dict[str, str]) -> dict[str, str]:
    """Ids of media by name, of those that are found: a name is an id, or it stands at a place, where several clips of
    one file are none.
    """
    wanted = pa.array([*places, *places.values()], pa.string())
    sources = catalog.sources.scan(["uri", "file_id"], pc.field("uri").isin(wanted) & pc.field("file_id").is_valid())
    files = dict(zip(sources["uri"].to_pylist(), sources["file_id"].to_pylist(), strict=True))
    is_named = pc.field("media_id").isin(wanted) | pc.field("file_id").isin(pa.array(list(files.values()), pa.string()))
    media = catalog.media.scan(["media_id", "file_id"], is_named)
    of_file: dict[str, list[str]] = {}
    for media_id, file_id in zip(media["media_id"].to_pylist(), media["file_id"].to_pylist(), strict=True):
        of_file.setdefault(file_id, []).append(media_id)
    known = {media_id: media_id for each in of_file.values() for media_id in each}
    known |= {uri: of_file[file_id][0] for uri, file_id in files.items() if len(of_file.get(file_id, [])) == 1}
    return {name: known.get(name, known.get(place, "")) for name, place in places.items() if {name, place} & set(known)}
