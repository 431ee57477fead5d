"""What a job is given besides token shards, put into its folder before it is prepared."""

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa

from tokenmill import storage
from tokenmill.storage.errors import TrainingError
from tokenmill.storage.failures import as_damaged
from tokenmill.tokenizer.drawings import read_drawings
from tokenmill.training.data.dialogues import read_dialogues, table_of
from tokenmill.training.data.held_out import HeldOut
from tokenmill.training.data.pairs import pairs_of
from tokenmill.training.data.spoken import media_key
from tokenmill.training.job import KIN, PAIRED, SELECTED, SPOKEN, TrainJob
from tokenmill.training.run.tables import read_table, write_table

_NAMED = 3  # names in a message


def give_selected(job: TrainJob, media_ids: Iterable[str]) -> None:
    """Say which media `data.select` leaves."""
    keys = np.sort(np.array([media_key(media_id) for media_id in media_ids], np.uint64))
    write_table(pa.table({"media": keys}), job.at(SELECTED))


def selected(job: TrainJob) -> np.ndarray | None:
    """uint64, rising: keys of the media that were selected; None: all."""
    if not job.config.data.select:
        return None
    with as_damaged(job.at(SELECTED)):
        return read_table(job.at(SELECTED))["media"].to_numpy()


def give_families(job: TrainJob, families: pa.Table) -> None:
    """Say which media are held out with others, and which are like one that is trained on: rows of FAMILIES."""
    write_table(families, job.at(KIN))


def held_out(job: TrainJob) -> HeldOut | None:
    """What decides which documents are held out; None: none are."""
    share = job.config.data.held_out
    if not share:
        return None
    if not storage.exists(job.at(KIN)):  # of shards alone, without a catalog
        return HeldOut(share)
    with as_damaged(job.at(KIN)):
        return HeldOut(share, read_table(job.at(KIN)))


def give_dialogues(job: TrainJob, ids_of: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """Read `data.dialogues`; `ids_of` finds, for names with their places beside the file, the ids of media by name.

    Raises TrainingError for a line that is no dialogue, and for media that are not found.
    """
    assert job.config.data.dialogues is not None
    uri = storage.absolute(job.config.data.dialogues)
    found = list(read_dialogues(storage.read_bytes(uri), uri))
    folder = uri.rsplit("/", 1)[0]
    names = sorted({dialogue.name for dialogue in found if dialogue.name is not None})
    ids = ids_of({name: name if "://" in name else storage.join(folder, name) for name in names})
    if lacking := [dialogue for dialogue in found if dialogue.name is not None and dialogue.name not in ids]:
        named = ", ".join(f"{dialogue.name} (line {dialogue.line})" for dialogue in lacking[:_NAMED])
        raise TrainingError(
            f"{uri}: {len(lacking)} of {len(found)} dialogues are about media that the catalog does not know: "
            f"{named}{', ...' if len(lacking) > _NAMED else ''}; add their folder to `sources` and run again, or take "
            "the lines out"
        )
    media_ids = [None if dialogue.name is None else ids[dialogue.name] for dialogue in found]
    write_table(table_of(found, media_ids), job.at(SPOKEN))


def give_pairs(job: TrainJob) -> int:
    """Read drawings and votes of `preferences`; how many prompts the votes leave undecided. Raises TrainingError."""
    part = job.config.preferences
    assert part is not None
    drawings = read_drawings(storage.absolute(part.samples))
    table, num_undecided = pairs_of(drawings, [storage.absolute(votes) for votes in part.votes])
    write_table(table, job.at(PAIRED))
    return num_undecided


def pairs(job: TrainJob) -> pa.Table | None:
    """Rows of PAIRS (training/data/pairs.py); None: it learns from the corpus."""
    if job.config.preferences is None:
        return None
    with as_damaged(job.at(PAIRED)):
        return read_table(job.at(PAIRED))


def dialogues(job: TrainJob) -> pa.Table | None:
    """Rows of training/data/dialogues.py; None: there are none."""
    if job.config.data.dialogues is None:
        return None
    with as_damaged(job.at(SPOKEN)):
        return read_table(job.at(SPOKEN))
