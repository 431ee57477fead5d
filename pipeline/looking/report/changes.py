"""Two versions side by side: media that came, that went, and whose verdict or caption is another."""

from dataclasses import dataclass
from typing import Any

from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.looking.query import Tables

_SHOWN = 8


@dataclass(frozen=True)
class Change:
    """So many media of which the same is to be said; some of them."""

    before: str
    after: str
    count: int
    media_ids: list[str]


@dataclass(frozen=True)
class Changes:
    """Since a version."""

    version: int
    verdicts: list[Change]
    captions: int  # media with another caption in the tokens
    rows: list[dict[str, Any]]  # of each table: before and after


def changes(tables: Tables, against: int) -> Changes:
    """Since version `against`. Raises CatalogError for one that is not there, or not whole any more."""
    before = Tables(Catalog(tables.catalog.root, against, as_committed=True))
    tables.add("before_media", before.arrow("select media_id, verdict from judged"))
    tables.add("before_tokens", before.arrow("select media_id, caption from tokens where reject_reason is null"))
    found = tables.rows(
        "with pairs as (select coalesce(a.media_id, b.media_id) as media_id, "
        "coalesce(b.verdict, 'not there') as before, coalesce(a.verdict, 'not there') as after "
        "from (select media_id, verdict from judged) a full join before_media b using (media_id)) "
        "select before, after, count(*) as count, min(media_id, ?) as media_ids from pairs where before <> after "
        "group by all order by count desc, before, after",
        _SHOWN,
    )
    recaptioned = tables.value(
        "select count(*) from tokens t join before_tokens b using (media_id) "
        "where t.reject_reason is null and t.caption is distinct from b.caption"
    )
    rows = [
        {"table": table.name, "before": older.count(), "after": table.count()}
        for table, older in zip(tables.catalog, before.catalog, strict=True)
    ]
    return Changes(against, [Change(**row) for row in found], recaptioned, rows)
