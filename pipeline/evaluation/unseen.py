"""What models were trained on, by the versions of `tokens` that they and those before them were given, and by what all
of them held out of these (`train.data.held_out`).

No figure on training data is told as one on held-out data: media whose file, or whose id, stands in one of these
versions are left out and counted, but what each of these trainings held out. Near copies of new media are not looked
for (`curate.duplicates` does that); those of media that were held out are (training/data/held_out.py).
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenmill import storage
from tokenmill.pipeline.catalog.models import version_of
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.training.data.held_out import Fate, HeldOut
from tokenmill.training.data.spoken import media_key
from tokenmill.training.job import DONE, KIN, PLAN, lineage
from tokenmill.training.run.tables import read_table

_KEPT = pc.field("reject_reason").is_null()


@dataclass(frozen=True)
class TrainedOn:
    """Versions of the tokens, and the folders of the trainings; `unknown`: models that the asked ones go back to, and
    whose data is not of this root.
    """

    root: str
    versions: tuple[int, ...]
    unknown: tuple[str, ...]
    uris: tuple[str, ...] = ()

    def files(self, file_ids: list[str]) -> set[str]:
        """Those of the files of which anything was trained on."""
        found: set[str] = set()
        wanted = pc.field("file_id").isin(pa.array(file_ids, pa.string()))
        for version in self.versions if file_ids else ():
            catalog = Catalog(self.root, version)
            media = catalog.media.scan(["media_id", "file_id"], wanted)
            is_used = pc.field("media_id").isin(media["media_id"].combine_chunks())
            used = catalog.tokens.scan(["media_id"], _KEPT & is_used)["media_id"]
            media = media.filter(pc.is_in(media["media_id"], value_set=used.combine_chunks()))
            found |= set(media["file_id"].to_pylist())
        return found

    def fresh(self, catalog: Catalog, most: int, fingerprints: list[str]) -> list[str]:
        """Ids of at most `most` kept rows of the newest tokens of each kind, texts or codes with these fingerprints,
        that none of the models was given, neither they nor another part of their file; ids are random, so the first
        are a sample.
        """
        is_coded = pc.field("fingerprint").isin(fingerprints) | (pc.field("kind") == "text")
        known = {uri for version in self.versions for uri in catalog.tokens.files(version)}
        added = [uri for uri in catalog.tokens.files() if uri not in known]
        rows = catalog.tokens.read_files(added, ["media_id", "kind"], _KEPT & is_coded)
        for version in self.versions:
            same = pc.field("media_id").isin(rows["media_id"].combine_chunks())
            old = Catalog(self.root, version).tokens.scan(["media_id"], _KEPT & same)["media_id"]
            rows = rows.filter(pc.invert(pc.is_in(rows["media_id"], value_set=old.combine_chunks())))
        is_new = pc.field("media_id").isin(rows["media_id"].combine_chunks())
        media = catalog.media.scan(["media_id", "file_id"], is_new)
        file_of = dict(zip(media["media_id"].to_pylist(), media["file_id"].to_pylist(), strict=True))
        seen = self.files(sorted({file_id for file_id in file_of.values() if file_id is not None}))
        chosen: list[str] = []
        for kind in ("image", "video", "text"):
            ids = sorted(rows.filter(pc.equal(rows["kind"], kind))["media_id"].to_pylist())
            chosen += [media_id for media_id in ids if file_of.get(media_id) not in seen][:most]
        return chosen

    def held_out(self, catalog: Catalog, most: int, fingerprints: list[str]) -> list[str]:
        """Ids of at most `most` kept rows of the newest tokens of each kind, with these fingerprints, that each of the
        trainings held out; none where one of them held out nothing.
        """
        if not self.uris or self.unknown or not all(parts := [_held_out(uri) for uri in self.uris]):
            return []
        is_coded = pc.field("fingerprint").isin(fingerprints) | (pc.field("kind") == "text")
        rows = catalog.tokens.scan(["media_id", "kind"], _KEPT & is_coded)
        keys = np.array([media_key(media_id) for media_id in rows["media_id"].to_pylist()], np.uint64)
        is_out = np.all([part.fates(keys) == Fate.HELD_OUT for part in parts if part], axis=0)
        rows = rows.filter(pa.array(is_out))
        return [
            media_id
            for kind in ("image", "video", "text")
            for media_id in sorted(rows.filter(pc.equal(rows["kind"], kind))["media_id"].to_pylist())[:most]
        ]


def _held_out(uri: str) -> HeldOut | None:
    """What the training in a folder held out; null: nothing."""
    share = storage.read_json(storage.join(uri, PLAN)).get("config", {}).get("data", {}).get("held_out", 0.0)
    if not share:
        return None
    families = storage.join(uri, KIN)
    return HeldOut(share, read_table(families)) if storage.exists(families) else HeldOut(share)


def trained_on(root: str, uris: list[str]) -> TrainedOn:
    """Of the models in these folders, and of those that they go back to. Raises CatalogError where it is lost."""
    names = {name: uri.rstrip("/").rsplit("/", 1)[0] for uri in uris for name, _ in lineage(uri)}
    here = {name for name, folder in names.items() if storage.exists(storage.join(folder, name, DONE))}
    versions = {version for name in here if (version := version_of(name)) is not None}
    if not (catalog := Catalog(root)).exists():
        return TrainedOn(root, (), tuple(sorted(names)))
    if lost := [version for version in sorted(versions) if not catalog.tokens.is_whole(version)]:
        raise CatalogError(
            f"{root}: tokens version {lost[0]}, which a model was trained on, lost files to `tokenmill forget`, so "
            "nobody can say what it has seen; train on the newest version, and evaluate that"
        )
    folders = tuple(storage.join(names[name], name) for name in sorted(here))
    return TrainedOn(root, tuple(sorted(versions)), tuple(sorted(set(names) - here)), folders)
