"""A .jsonl of questions and true answers, in the form of `data.dialogues` -> questions about encoded media."""

from pathlib import Path

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import ConfigError
from tokenmill.pipeline.evaluation.given import Asked, Codec, Seen
from tokenmill.pipeline.evaluation.held_out import by_id
from tokenmill.pipeline.evaluation.unseen import TrainedOn
from tokenmill.pipeline.run.given import ids_of
from tokenmill.storage.identity import content_id
from tokenmill.training.data.dialogues import read_dialogues

_NAMED = 3  # names in a message


def read_questions(path: Path, most: int, codec: Codec, catalog: Catalog, known: TrainedOn) -> tuple[list[Asked], int]:
    """At most so many, the first ones, each turn of a dialogue alone; and how many are about what models were trained
    on. Media are files beside the .jsonl, or media of the catalog, which count as trained on.

    Raises TrainingError for a line that is no dialogue, ConfigError for media that are not there.
    """
    try:
        dialogues = list(read_dialogues(path.read_bytes(), str(path)))[:most]
    except OSError as error:
        raise ConfigError(f"--questions {path}: {error.strerror}; give a .jsonl as docs/tune.md shows") from None
    places = {each.name: path.parent / each.name for each in dialogues if each.name is not None}
    files = {name: file for name, file in places.items() if file.is_file()}
    others = {name: str(file) for name, file in places.items() if name not in files}
    ids = ids_of(catalog, others) if others and catalog.exists() else {}
    rows = by_id(catalog, sorted(set(ids.values())))
    if lacking := sorted(name for name in others if ids.get(name) not in rows):
        raise ConfigError(
            f"--questions {path}: {len(lacking)} of {len(places)} media are neither files beside it nor kept in the "
            f"catalog: {', '.join(lacking[:_NAMED])}; paths are relative to the .jsonl"
        )
    contents = {name: content_id(storage.read_chunks(str(file))) for name, file in files.items()}
    trained_on = known.files(sorted(set(contents.values())))
    media: dict[str | None, Seen | None] = {None: None} | {name: rows[ids[name]] for name in others}
    for name, file in files.items():
        if (seen := codec.read(file)) is None:
            raise ConfigError(f"--questions {path}: {name} is a video, and tokenize.model codes pictures; leave it out")
        media[name] = seen
    asked, num_known = list[Asked](), 0
    for each in dialogues:
        seen = media[each.name]
        for turn in each.turns[: most - len(asked)]:
            asked.append(Asked.of(turn.question, turn.answer, seen))
            num_known += each.name in others or contents.get(each.name or "") in trained_on
    return asked, num_known
