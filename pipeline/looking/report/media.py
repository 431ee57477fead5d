"""Media as pictures: verdicts, groups of copies, clips that play, captions side by side. Which ones a seed chooses."""

from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from tokenmill import stages
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.looking.query import Tables
from tokenmill.pipeline.looking.report.pictures import Pictures

_OF_VERDICT, _GROUPS, _OF_GROUP, _CLIPS, _CAPTIONED, _REFUSED = 8, 10, 6, 12, 16, 3
_PLACE = (
    "media_id, file_id, kind, uri, member, offset_bytes, size_bytes, start_s, end_s, width_px, height_px, duration_s, "
    "reject_reason, reject_detail"
)


@dataclass(frozen=True)
class Tile:
    """A medium on the page: its picture as data URI, or null; name, and what is said of it."""

    media_id: str
    name: str
    picture: str | None
    words: str = ""


class Media:
    """Looks media up. `seed` chooses which."""

    def __init__(self, config: RunConfig, tables: Tables, pictures: Pictures, seed: int):
        self._config, self._tables, self._pictures, self._seed = config, tables, pictures, seed
        self._rows: dict[str, dict[str, Any]] = {}

    def know(self, media_ids: list[str]) -> None:
        """Look up all these at once."""
        wanted = sorted(set(media_ids) - self._rows.keys())
        for start in range(0, len(wanted), 1_000):
            found = self._tables.rows(
                f"select {_PLACE} from media where media_id in (select unnest(?))", wanted[start : start + 1_000]
            )
            self._rows |= {row["media_id"]: row for row in found}

    def knows(self, media_id: str) -> bool:
        """Whether it was looked up, and is there."""
        return media_id in self._rows

    def tile(self, media_id: str, words: str = "", is_moving: bool = False) -> Tile:
        """Of one medium."""
        self.know([media_id])
        row = self._rows[media_id]
        draw = self._pictures.moving if is_moving else self._pictures.still
        name = (row["member"] or row["uri"]).rsplit("/", 1)[-1]
        return Tile(media_id, name, draw(row), words)

    def by_verdict(self, known: set[str]) -> list[tuple[str, str, int, list[Tile]]]:
        """Verdict, meaning, number and some media of it; without the verdicts `known`, which are rules with examples of
        their own.
        """
        found = []
        for row in self._tables.rows(
            "select reject_reason as reason, count(*) as count from media where reject_reason is not null "
            "group by all order by count desc, reason"
        ):
            if row["reason"] in known:
                continue
            some = self._some("reject_reason = ?", _OF_VERDICT, row["reason"])
            tiles = [self.tile(each["media_id"], each["reject_detail"] or "") for each in some]
            found.append((row["reason"], stages.REASONS.get(row["reason"], ""), row["count"], tiles))
        return found

    def groups(self) -> list[tuple[int, list[Tile]]]:
        """The largest groups of copies: how many there are, the one that stays first."""
        found = []
        for row in self._tables.rows(
            "select duplicate_of, count(*) as count from duplicates where method <> ? group by all "
            "order by count desc, duplicate_of limit ?",
            stages.KEPT,
            _GROUPS,
        ):
            others = self._tables.rows(
                "select media_id, method, distance from duplicates where duplicate_of = ? and method <> ? "
                "order by distance, media_id limit ?",
                row["duplicate_of"],
                stages.KEPT,
                _OF_GROUP,
            )
            self.know([row["duplicate_of"], *(each["media_id"] for each in others)])
            tiles = [
                self.tile(each["media_id"], f"{each['method']}, distance {each['distance']:g}")
                for each in others
                if each["media_id"] in self._rows
            ]
            if row["duplicate_of"] in self._rows:
                tiles.insert(0, self.tile(row["duplicate_of"], "stays"))
            found.append((row["count"] + 1, tiles))
        return found

    def clips(self) -> list[Tile]:
        """Some kept ones, playing."""
        some = self._some("kind = 'video' and reject_reason is null", _CLIPS)
        return [
            self.tile(row["media_id"], f"{row['width_px']} x {row['height_px']}, {row['duration_s'] or 0:.1f} s", True)
            for row in some
        ]

    def captioned(self) -> list[tuple[Tile, list[dict[str, Any]]]]:
        """Some media, and what each captioner says of them, the caption that training reads marked `is_used`."""
        some = self._tables.rows(
            "with few as (select distinct media_id from captions where captioner <> 'source' or caption is not null) "
            "select media_id from few join media using (media_id) where kind in ('image', 'video') "
            "and reject_reason is null order by hash(media_id || ?) limit ?",
            str(self._seed),
            _CAPTIONED,
        )
        ids = [row["media_id"] for row in some]
        columns = ", ".join(f'"{name}"' for name in dict.fromkeys((*stages.TO_CHOOSE, "model", "reject_reason")))
        rows = self._tables.arrow(
            f"select {columns} from captions where media_id in (select unnest(?)) and caption is not null "
            "order by media_id, captioner <> 'source', captioner, span",
            ids,
        )
        used = stages.choose_captions(rows.select(stages.TO_CHOOSE), self._config.caption, rows["media_id"].slice(0, 0))
        pairs = set(zip(used["media_id"].to_pylist(), used["captioner"].to_pylist(), strict=True))
        found = []
        self.know(ids)
        for media_id in ids:
            mine = rows.filter(pc.equal(rows["media_id"], media_id)).to_pylist()
            said = [each | {"is_used": (media_id, each["captioner"]) in pairs} for each in mine]
            found.append((self.tile(media_id), said))
        return found

    def refused(self) -> list[dict[str, Any]]:
        """Captions that do not count: captioner, reason, number, and some of them."""
        found = self._tables.rows(
            "select captioner, reject_reason as reason, count(*) as count from captions "
            "where reject_reason is not null group by all order by count desc, captioner, reason limit 40"
        )
        for row in found:
            row["some"] = self._tables.rows(
                "select media_id, caption, reject_detail from captions where captioner = ? and reject_reason = ? "
                "order by hash(media_id || ?) limit ?",
                row["captioner"],
                row["reason"],
                str(self._seed),
                _REFUSED,
            )
        return found

    def _some(self, where: str, count: int, *values: Any) -> list[dict[str, Any]]:
        rows = self._tables.rows(
            f"select {_PLACE} from media where {where} order by hash(media_id || ?) limit ?",
            *values,
            str(self._seed),
            count,
        )
        self._rows |= {row["media_id"]: row for row in rows}
        return rows
