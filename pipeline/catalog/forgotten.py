"""What must not come back: hashes of forgotten contents and places, in `<root>/forgotten.json`.

Of the content, so that the same bytes at another place are left out; of the place and its state, so that they are not
read again to find out.
"""

import hashlib
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill import storage
from tokenmill.pipeline.catalog.log.readable import FORGOTTEN
from tokenmill.pipeline.catalog.tables import Catalog, Table
from tokenmill.storage.checksums import is_as_signed, signed
from tokenmill.storage.errors import DamagedError

LIST, COPY = "forgotten.json", "forgotten.copy.json"  # no other file could be made anew from what is left


@dataclass
class Forgotten:
    """Ids of contents and clips that must not come back, and hashes of the places where they were met."""

    root: str
    ids: set[str] = field(default_factory=set)
    places: set[str] = field(default_factory=set)

    @classmethod
    def load(cls, root: str) -> "Forgotten":
        """The list under `root`; empty without one. Raises DamagedError."""
        uri = storage.join(root, LIST)
        there = storage.exists(uri)
        if not there and storage.exists(storage.join(root, COPY)):
            raise DamagedError(uri)  # never without it: what it names would come back
        document = storage.read_json(uri) if there else {}
        if not is_intact(document):
            raise DamagedError(uri)
        return cls(root, set(document.get("ids", [])), set(document.get("places", [])))

    def save(self) -> None:
        """Write the list."""
        document = {"ids": sorted(self.ids), "places": sorted(self.places)}
        for name in (LIST, COPY):
            storage.write_json(storage.join(self.root, name), signed(document))

    def id_array(self) -> pa.Array:
        """The ids as Arrow strings."""
        return pa.array(sorted(self.ids), pa.string())

    def without(self, listed: pa.Table) -> pa.Table:
        """Rows of a listing (uri, etag) that stand at no forgotten place."""
        places = zip(listed["uri"].to_pylist(), listed["etag"].to_pylist(), strict=True)
        return listed.filter(pa.array([place(uri, etag) not in self.places for uri, etag in places], pa.bool_()))

    def meet(self, rows: pa.Table) -> pa.Table:
        """Remember the files of `sources` rows whose content is forgotten; returns the other rows."""
        is_forgotten = pc.fill_null(pc.is_in(rows["file_id"], value_set=self.id_array()), False)
        met = rows.filter(pc.and_(is_forgotten, pc.is_null(rows["member"])))  # a container is read for its others
        if met.num_rows:
            self.places |= {place(row["uri"], row["etag"]) for row in met.select(["uri", "etag"]).to_pylist()}
            self.save()
        return rows.filter(pc.invert(is_forgotten))


def is_intact(document: object) -> bool:
    """Whether a list is as it was written; one of an older release, whether it looks like a list."""
    if not isinstance(document, dict):
        return False
    lists = [document.get(name, []) for name in ("ids", "places")]
    are_texts = all(isinstance(each, list) and all(isinstance(item, str) for item in each) for each in lists)
    return are_texts and is_as_signed(document)


def place(uri: str, etag: str) -> str:
    """32 hex digits that stand for an object in one state, without telling its name."""
    return hashlib.blake2b(f"{uri}\n{etag}".encode(), digest_size=16).hexdigest()


def drop_forgotten(catalog: Catalog, forgotten: Forgotten, run_id: str) -> dict[str, int]:
    """Take rows of forgotten media out of the newest version of every table; returns how many, by table."""
    ids = forgotten.id_array()
    note = {"run_id": run_id, "what": FORGOTTEN}
    return {table.name: table.edit(_holds(table, ids), None, note) for table in catalog} if len(ids) else {}


def _holds(table: Table, ids: pa.Array) -> pc.Expression:
    columns = [name for name in ("media_id", "file_id") if name in table.schema.names]
    found = pc.field(columns[0]).isin(ids)
    for name in columns[1:]:
        found = found | pc.field(name).isin(ids)
    return found
