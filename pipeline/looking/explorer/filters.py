"""What was asked for in the grid -> SQL. Columns are those of the table, values are parameters; no more gets in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tokenmill import stages

PAGE = 60
OPERATORS = {">=": ">=", "<=": "<=", "=": "=", "has": "ilike"}
_HIDDEN = {"embedding", "offset_bytes"}
COLUMNS = {
    field.name: field.type for field in stages.MEDIA if not pa.types.is_list(field.type) and field.name not in _HIDDEN
}


@dataclass(frozen=True)
class Condition:
    """`column` of media compared with a value."""

    column: str
    operator: str
    value: str

    def sql(self) -> tuple[str, Any]:
        """With one ?, and its value. Raises ValueError for what does not fit."""
        if self.column not in COLUMNS or self.operator not in OPERATORS:
            raise ValueError(f"{self.column} {self.operator}: no such column or comparison")
        type_ = COLUMNS[self.column]
        if self.operator == "has":
            text = self.value.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            return f"\"{self.column}\"::varchar ilike ? escape '\\'", f"%{text}%"
        if pa.types.is_boolean(type_):
            return f'"{self.column}" {self.operator} ?', self.value.lower() in ("true", "1", "yes")
        value = self.value if pa.types.is_string(type_) else float(self.value)
        return f'"{self.column}" {self.operator} ?', value


@dataclass(frozen=True)
class Asked:
    """A page of the grid."""

    kind: str = ""
    verdict: str = ""
    conditions: tuple[Condition, ...] = ()
    sort: str = ""
    falls: bool = False
    page: int = 0

    @classmethod
    def of(cls, query: Mapping[str, str], lists: Mapping[str, list[str]]) -> "Asked":
        """Of an address: kind, verdict, sort, falls, page, and c, o, v as often as there are conditions."""
        triples = zip(lists.get("c", []), lists.get("o", []), lists.get("v", []), strict=False)
        conditions = tuple(Condition(*each) for each in triples if each[0] and each[2])
        page = query.get("page", "0")
        return cls(
            query.get("kind", ""),
            query.get("verdict", ""),
            conditions,
            query.get("sort", ""),
            query.get("falls", "") == "1",
            int(page) if page.isdigit() and len(page) < 7 else 0,
        )

    def where(self) -> tuple[str, list[Any]]:
        """The condition and its values. Raises ValueError."""
        parts, values = ["true"], list[Any]()
        if self.kind:
            parts.append("kind = ?")
            values.append(self.kind)
        if self.verdict:
            parts.append("verdict = ?")
            values.append(self.verdict)
        for condition in self.conditions:
            sql, value = condition.sql()
            parts.append(sql)
            values.append(value)
        return " and ".join(parts), values

    def order(self) -> str:
        """Raises ValueError for an unknown column."""
        if not self.sort:
            return "media_id"
        if self.sort not in COLUMNS:
            raise ValueError(f"{self.sort}: no such column")
        return f'"{self.sort}" {"desc" if self.falls else "asc"} nulls last, media_id'
