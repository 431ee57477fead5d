"""What stands beside the tables: exports, and under `training` checkpoints and models."""

import hashlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenmill import storage
from tokenmill.pipeline.catalog.export_registry import exports
from tokenmill.pipeline.config import CAPTIONS_NAME
from tokenmill.pipeline.verify.problems import Aside, Problem, set_aside
from tokenmill.storage.checksums import damaged_file, signed
from tokenmill.storage.errors import DamagedError
from tokenmill.storage.identity import content_id
from tokenmill.tokenizer import webdataset_shards
from tokenmill.training.job import DONE, PLAN

_THREADS = 8
_AGAIN = "written again by the next `tokenmill export`"


def find_exports(root: str) -> Iterator[Problem]:
    """Damaged files of all exports that are recorded and still there."""
    try:
        known = exports(root)
    except DamagedError:
        return  # told as a document
    for export in known:
        uri = export["uri"]
        if storage.exists(uri) and (find := _FINDERS.get(export["kind"])) is not None:
            yield from find(uri)


def _media(uri: str, kind: str) -> Iterator[Problem]:
    """Images are named by their content; of clips, which were encoded, an empty file is known to be cut."""
    names = [name for name in storage.list_names(uri) if name != CAPTIONS_NAME and not name.endswith(".broken")]
    files = [storage.join(uri, name) for name in names]

    def is_damaged(file: str) -> bool:
        if kind == "image":
            return content_id(storage.read_chunks(file)) != file.rsplit("/", 1)[1].split(".")[0]
        return not any(storage.read_chunks(file, 0, 1))

    with ThreadPoolExecutor(_THREADS) as threads:
        for file, damaged in zip(files, threads.map(is_damaged, files), strict=True):
            if damaged:
                yield Problem("export", file, "other bytes than were written", _AGAIN, mend=set_aside(file))


def _parquet(uri: str) -> Iterator[Problem]:
    """Files of media with captions: their pages have checksums."""

    def is_damaged(file: str) -> bool:
        try:
            with storage.local_file(file) as path:
                for _ in pq.ParquetFile(path, page_checksum_verification=True).iter_batches(64):
                    pass
        except (OSError, pa.ArrowException):
            return True
        return False

    for folder in [storage.join(uri, name) for name in storage.list_names(uri) if "." not in name]:
        for name in storage.list_names(folder):
            file = storage.join(folder, name)
            if name.endswith(".parquet") and is_damaged(file):
                yield Problem("export", file, "other bytes than were written", _AGAIN, mend=set_aside(file))


def _tars(uri: str) -> Iterator[Problem]:
    place = storage.join(uri, webdataset_shards.DOCUMENT)
    try:
        document = storage.read_json(place)
        if not webdataset_shards.is_intact(document):
            raise DamagedError(place)
    except (OSError, DamagedError):
        mend = partial(_write_stopped, place)
        yield Problem("export", place, "damaged or gone", "which tars there are: " + _AGAIN, mend=mend)
        return

    def look(shard: dict[str, Any]) -> tuple[bool, bool]:
        tar = storage.join(uri, shard["name"])
        md5 = hashlib.md5(usedforsecurity=False)
        for chunk in storage.read_chunks(tar) if storage.exists(tar) else ():
            md5.update(chunk)
        return md5.hexdigest() == shard["md5sum"], _members_fit(tar, shard)

    with ThreadPoolExecutor(_THREADS) as threads:
        for shard, (is_whole, fits) in zip(document["shards"], threads.map(look, document["shards"]), strict=True):
            tar = storage.join(uri, shard["name"])
            if not is_whole:
                what = "gone, or other bytes than were written"
                yield Problem("export", tar, what, "its samples, " + _AGAIN, mend=partial(_drop_shard, place, tar))
            elif not fits:
                members = webdataset_shards.members_uri(tar)
                yield Problem("export", members, "damaged or gone", "made anew from its tar", mend=set_aside(members))


def _members_fit(tar: str, shard: dict[str, Any]) -> bool:
    """As the export recorded them; it has done so since it writes `members_id`."""
    try:
        content = storage.read_bytes(webdataset_shards.members_uri(tar))
        if content_id([content]) != shard.get("members_id", content_id([content])):
            return False
        members, of_tar = webdataset_shards.read_members(tar)
        return of_tar == shard["md5sum"] and members.schema.names == webdataset_shards.MEMBERS.names
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return False


def _write_stopped(place: str, aside: Aside) -> None:
    """As an export that was stopped: the next one takes over what tars are whole."""
    aside.take(place)
    document: dict[str, Any] = {"format": webdataset_shards.FORMAT, "tokens_version": None, "shards": [], "removed": {}}
    storage.write_json(place, document | {"next_shard": 0})


def _drop_shard(place: str, tar: str, aside: Aside) -> None:
    """The next export misses the samples of a tar, and training refuses what is not whole."""
    document, name = storage.read_json(place), tar.rsplit("/", 1)[1]
    document["shards"] = [shard for shard in document["shards"] if shard["name"] != name]
    document["removed"].pop(name, None)
    document[webdataset_shards.LOST] = [*document.get(webdataset_shards.LOST, []), name]
    storage.write_json(place, signed(document))
    aside.take(tar)
    aside.take(webdataset_shards.members_uri(tar))


def find_trainings(root: str) -> Iterator[Problem]:
    """Damaged plans, checkpoints and models of all trainings."""
    folder = storage.join(root, "training")
    for uri in (storage.join(folder, name) for name in storage.list_names(folder)):
        yield from _training(uri)


def _training(uri: str) -> Iterator[Problem]:
    plan, done = storage.join(uri, PLAN), storage.join(uri, DONE)
    parts = [storage.join(uri, name) for name in ("index.parquet", "plan.parquet")]
    if storage.exists(plan) and not (_is_json(plan) and all(_is_table(part) for part in parts)):
        hangs = "the plan, made anew from the tokens"
        yield Problem("training", plan, "damaged, or what it names is", hangs, mend=set_aside(plan))
    folder = storage.join(uri, "checkpoints")
    for step in storage.list_names(folder):
        place = storage.join(folder, step)
        meta = storage.join(place, "meta.json")
        if storage.exists(meta) and (bad := meta if not _is_json(meta) else damaged_file(place)):
            hangs = "the training, resumed from an earlier checkpoint or its start, unless it is finished"
            yield Problem("training", bad, "other bytes than were written", hangs, mend=partial(_take_all, place))
    if storage.exists(done):
        bad = done if not _is_json(done) else _damaged_model(storage.join(uri, "model"))
        if bad:
            hangs = "the model, finished again from the newest checkpoint"
            yield Problem("training", bad, "gone, or other bytes than were written", hangs, mend=set_aside(done))


def _damaged_model(uri: str) -> str | None:
    names = storage.list_names(uri)
    if not any(name.endswith(".safetensors") for name in names):
        return uri
    return damaged_file(uri)


def _take_all(place: str, aside: Aside) -> None:
    """The mark first: a checkpoint without it is none."""
    for name in sorted(storage.list_names(place), key=lambda name: name != "meta.json"):
        aside.take(storage.join(place, name))


def _is_json(uri: str) -> bool:
    try:
        return isinstance(storage.read_json(uri), dict)
    except DamagedError:
        return False


def _is_table(uri: str) -> bool:
    try:
        pq.read_table(io.BytesIO(storage.read_bytes(uri)))
        return True
    except (pa.ArrowException, OSError):
        return False


_FINDERS: dict[str, Callable[[str], Iterator[Problem]]] = {
    "webdataset": _tars,
    "image": partial(_media, kind="image"),
    "video": partial(_media, kind="video"),
    "parquet": _parquet,
}
