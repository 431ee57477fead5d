"""Between the tables: media whose rows are lost, rows of media that are no more; and what URLs gave.

Each table is read for its ids alone, from the files that are whole.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog, Table
from tokenmill.pipeline.refresh.arrow import count, distinct, is_in, without
from tokenmill.pipeline.refresh.changed_keys import LOST, REOPENED
from tokenmill.pipeline.verify.files import mark_lost
from tokenmill.pipeline.verify.problems import Aside, Problem
from tokenmill.stages.read.media_bytes import WEB, fetched_uri
from tokenmill.stages.select.duplicates import KEPT
from tokenmill.storage.identity import content_id

_THREADS = 8
_STOPPED = "left by a run that was stopped, or by a repair: the next run sees to it"


class References:
    """`files`: by table, its whole data files."""

    def __init__(self, catalog: Catalog, files: Mapping[str, list[str]], fetched: str):
        self._catalog, self._files, self._fetched = catalog, files, fetched

    def _scan(self, table: Table, *columns: str) -> pa.Table:
        return table.read_files(self._files[table.name], list(columns))

    def find(self, deep: bool) -> Iterator[Problem]:
        """With `deep`, captions and tokens must be of media that go on."""
        catalog = self._catalog
        sources = self._scan(catalog.sources, "uri", "member", "status", "file_id", "fingerprint")
        present = sources.filter(pc.equal(sources["status"], "present"))
        media = self._scan(catalog.media, "media_id", "file_id", "member", "reject_reason")
        is_marked = is_in(present["fingerprint"], pa.array([LOST, REOPENED]))
        unmarked = present.filter(pc.invert(is_marked))["file_id"].drop_null()
        if len(lost := distinct(without(unmarked, media["file_id"]))):
            hangs = f"{len(lost)} files, read again"
            yield Problem(
                "reference", catalog.media.uri, "media lost", hangs, mend=partial(mark_lost, self._catalog, lost)
            )
        if number := count(pc.invert(is_in(media["file_id"], present["file_id"]))):
            yield Problem("reference", catalog.media.uri, f"{number} media of no source", _STOPPED, is_harmless=True)
        marked = present.filter(is_marked)["file_id"].drop_null()
        yield from self._find_fetched(media.filter(pc.invert(is_in(media["file_id"], marked))))
        duplicates = self._scan(catalog.duplicates, "media_id", "method")
        going = media["media_id"]
        if deep:
            aside = duplicates.filter(pc.not_equal(duplicates["method"], KEPT))["media_id"]
            going = without(media.filter(pc.is_null(media["reject_reason"]))["media_id"], aside)
        for table in (catalog.duplicates, catalog.captions, catalog.tokens):
            ids = duplicates["media_id"] if table is catalog.duplicates else self._scan(table, "media_id")["media_id"]
            known = media["media_id"] if table is catalog.duplicates else going
            if number := len(distinct(without(ids, known))):
                what = f"{number} rows of media that do not go on"
                yield Problem("reference", table.uri, what, _STOPPED, is_harmless=True)

    def _find_fetched(self, media: pa.Table) -> Iterator[Problem]:
        is_kept = pc.and_(pc.is_null(media["reject_reason"]), pc.is_valid(media["member"]))
        kept = media.filter(is_kept)
        is_web = [pc.starts_with(kept["member"], scheme) for scheme in WEB]
        ids = distinct(kept.filter(pc.or_(*is_web))["file_id"]).to_pylist()

        def what(file_id: str) -> str | None:
            uri = fetched_uri(self._fetched, file_id)
            if not storage.exists(uri):
                return "gone"
            return None if content_id(storage.read_chunks(uri)) == file_id else "other bytes than were fetched"

        with ThreadPoolExecutor(_THREADS) as threads:
            for file_id, found in zip(ids, threads.map(what, ids), strict=True):
                if found is not None:
                    uri = fetched_uri(self._fetched, file_id)
                    mend = partial(self._fetch_again, uri, file_id)
                    yield Problem("fetched", uri, found, "its URL, fetched again", mend=mend)

    def _fetch_again(self, uri: str, file_id: str, aside: Aside) -> None:
        aside.take(uri)
        mark_lost(self._catalog, pa.array([file_id]), aside)
