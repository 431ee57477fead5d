"""The `sources` table while the curate phase runs: which files and members were read, with which content.

A row is a file, a container, or a member of a container. A container's own row is written, with its new state, when all
its members are: until then it counts as changed and is read again, and its members that stand here already are known.
"""

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.forgotten import Forgotten
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.stages.fetch.urls import TRANSIENT
from tokenmill.stages.read.containers import names
from tokenmill.stages.table.columns import MEDIA, SOURCES, VANISHED
from tokenmill.storage.identity import content_id

KEYS = (
    *("media_id", "file_id", "uri", "member", "offset_bytes", "size_bytes", "source_caption", "metadata"),
    *("kind", "reject_reason", "ends_container"),
)
_PIECE = 32  # members of a container that killed a worker, tried together


def place_of(rows: pa.Table) -> pa.ChunkedArray:
    """One text for each (uri, member)."""
    return pc.binary_join_element_wise(rows["uri"], pc.fill_null(rows["member"], ""), "\n")


def _place_field() -> pc.Expression:
    member = pc.coalesce(pc.field("member"), pc.scalar(""))
    return pc.binary_join_element_wise(pc.field("uri"), member, pc.scalar("\n"))


class Ledger:
    """Records what was read of `todo`, rows of LISTING with `source_caption`; `fingerprint` as in `source_changes`."""

    def __init__(self, catalog: Catalog, forgotten: Forgotten, todo: pa.Table, fingerprint: str, run_id: str):
        self._catalog, self._forgotten, self._todo = catalog, forgotten, todo
        self._fingerprint, self._run_id = fingerprint, run_id
        self._uris = todo["uri"].combine_chunks()
        there = catalog.sources.scan(["uri"], pc.field("uri").isin(self._uris))["uri"] if len(todo) else self._uris
        self._known_uris = pc.unique(there)
        self._vanished = pa.array([], pa.string())  # files and containers that went before they were read
        self._open: dict[str, list[str]] = {}  # members recorded of containers that have not ended

    def listed(self) -> pa.Table:
        """LISTED and UNPACK rows for the workers: of a container, what is known of its members already."""
        rows = self._todo
        is_container = pc.is_valid(rows["container"])
        known = self._known(rows.filter(is_container)["uri"].combine_chunks())
        lists = [known.get(uri, ([], [])) if held else (None, None) for uri, held in _pairs(rows, is_container)]
        made = rows.select(["uri", "size_bytes", "source_caption", "container", "column", "caption_column", "refused"])
        text = pa.list_(pa.string())
        made = made.append_column("known_members", pa.array([members for members, _ in lists], text))
        made = made.append_column("known_ids", pa.array([ids for _, ids in lists], text))
        return made.append_column("only", pa.nulls(made.num_rows, text))

    def _known(self, containers: pa.Array) -> dict[str, tuple[list[str], list[str]]]:
        """By container: its members with their contents, less those whose server failed."""
        if not len(containers):
            return {}
        where = pc.field("uri").isin(containers) & pc.field("member").is_valid()
        where = where & (pc.field("fingerprint") == self._fingerprint) & (pc.field("status") == "present")
        rows = self._catalog.sources.scan(["uri", "member", "file_id"], where)
        failed = self._catalog.media.scan(["file_id"], pc.field("reject_reason").isin(list(TRANSIENT)))
        rows = rows.filter(pc.invert(pc.is_in(rows["file_id"], value_set=failed["file_id"].combine_chunks())))
        found = rows.group_by("uri").aggregate([("member", "list"), ("file_id", "list")])
        return {row["uri"]: (row["member_list"], row["file_id_list"]) for row in found.to_pylist()}

    def record(self, keys: pa.Table) -> None:
        """Write the rows of what was read; `keys` has KEYS, rows of one file or member stand together."""
        firsts = ["file_id", "offset_bytes", "size_bytes", "source_caption", "metadata"]
        places = keys.group_by(["uri", "member"], use_threads=False).aggregate([(name, "first") for name in firsts])
        places = places.rename_columns([name.removesuffix("_first") for name in places.column_names])
        ended = pc.unique(keys.filter(pc.fill_null(keys["ends_container"], False))["uri"])
        self._remember(places, ended)
        whole = places.filter(pc.is_null(places["member"]))["uri"].combine_chunks()
        bare = ended.filter(pc.invert(pc.is_in(ended, value_set=whole)))
        empty = {"uri": bare} | {name: pa.nulls(len(bare), places.schema.field(name).type) for name in firsts}
        empty["member"] = pa.nulls(len(bare), pa.string())
        columns = ["uri", "member", *firsts]
        places = places.select(columns)
        places = pa.concat_tables([places, pa.table(empty).select(columns).cast(places.schema)])

        vanished = keys.filter(pc.fill_null(pc.equal(keys["reject_reason"], VANISHED), False))["uri"]
        self._vanished = pa.concat_arrays([self._vanished, pc.unique(vanished)])
        listed = self._todo.take(pc.index_in(places["uri"], value_set=self._uris))
        is_member = pc.is_valid(places["member"])
        count = places.num_rows
        rows = pa.table(
            {
                "uri": places["uri"],
                "member": places["member"],
                "offset_bytes": places["offset_bytes"],
                # A state that no listing has: the file may come back as it was.
                "etag": pc.if_else(pc.is_in(places["uri"], value_set=self._vanished), VANISHED, listed["etag"]),
                "size_bytes": pc.if_else(is_member, pc.coalesce(places["size_bytes"], 0), listed["size_bytes"]),
                "status": pa.array(["present"] * count),
                "file_id": places["file_id"],
                "caption": pc.if_else(is_member, places["source_caption"], listed["source_caption"]),
                "caption_etag": pc.if_else(is_member, None, listed["caption_etag"]),
                "metadata": places["metadata"],
                "fingerprint": pa.array([self._fingerprint] * count),
                "last_seen_run": pa.array([self._run_id] * count),
            }
        )
        self._write(self._forgotten.meet(rows.select(SOURCES.names)), rows, ended)

    def _write(self, kept: pa.Table, rows: pa.Table, ended: pa.Array) -> None:
        note = {"run_id": self._run_id, "phase": "curate"}
        if not pc.any(pc.is_in(rows["uri"], value_set=self._known_uris)).as_py():
            self._catalog.sources.append(kept, note)
            return
        old = _place_field().isin(place_of(rows).combine_chunks())
        if len(ended):
            # What a container held before and holds no more still has its former state.
            listed = self._todo.take(pc.index_in(ended, value_set=self._uris))
            state = pc.binary_join_element_wise(listed["uri"], listed["etag"], "\n").combine_chunks()
            now = pc.binary_join_element_wise(pc.field("uri"), pc.field("etag"), pc.scalar("\n"))
            old = old | (pc.field("uri").isin(ended) & ~now.isin(state))
        self._catalog.sources.edit(old, None, note, append=kept)

    def _remember(self, places: pa.Table, ended: pa.Array) -> None:
        for uri, member in zip(places["uri"].to_pylist(), places["member"].to_pylist(), strict=True):
            if member is not None:
                self._open.setdefault(uri, []).append(member)
        for uri in ended.to_pylist():
            self._open.pop(uri, None)

    def smaller(self, row: pa.Table) -> list[pa.Table]:
        """A row of `listed` that no worker survived, as rows of fewer members; none when it cannot be divided."""
        container, only = row["container"][0].as_py(), row["only"][0].as_py()
        if container is None or (only is not None and len(only) <= 1):
            return []
        if only is None:
            uri, column, caption_column = (row[name][0].as_py() for name in ("uri", "column", "caption_column"))
            done = set(self._open.get(uri, []))
            only = [name for name in names(uri, container, column, caption_column) if name not in done]
            parts = [only[start : start + _PIECE] for start in range(0, len(only), _PIECE)]
        else:
            parts = [[name] for name in only]
        at = row.schema.get_field_index("only")
        return [row.set_column(at, "only", pa.array([part], row.schema.field(at).type)) for part in parts]

    def ending(self, row: pa.Table) -> pa.Table:
        """Keys that say that all members of the container in `row` were read."""
        values = {"uri": row["uri"][0].as_py(), "ends_container": True}
        types = {field.name: field.type for field in MEDIA} | {"ends_container": pa.bool_()}
        return pa.table({name: pa.array([values.get(name)], types[name]) for name in KEYS})

    def unread(self, row: pa.Table) -> dict[str, str | None]:
        """uri, member and identity of a row of `listed` whose content no worker survived: its place and state stand
        for the bytes.
        """
        uri, only = row["uri"][0].as_py(), row["only"][0].as_py()
        member = only[0] if only else None
        etag = self._todo["etag"][pc.index(self._todo["uri"], uri).as_py()].as_py()
        identity = content_id([f"{uri}\n{etag}".encode(), b"" if member is None else f"\n{member}".encode()])
        return {"uri": uri, "member": member, "media_id": identity, "file_id": identity}


def _pairs(rows: pa.Table, is_container: pa.ChunkedArray) -> zip:
    return zip(rows["uri"].to_pylist(), is_container.to_pylist(), strict=True)
