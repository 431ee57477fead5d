"""What a person sees: the plan, live progress, the closing table, and the text of `status` and `show`.

Text that comes from a corpus (names, captions, a decoder's words) is escaped before it is shown.
"""

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress as Bar, TextColumn, TimeElapsedColumn
from rich.table import Table

from tokenmill.pipeline.reports.events import EventConsole
from tokenmill.pipeline.reports.progress import Observer, Progress
from tokenmill.stages import REASONS

_PLAIN_EVERY_S = 30.0  # off a terminal; small fills the logs of a job
_FIRST_PLAIN_S = 5.0  # so that one who waits sees soon that it works
_EVENT_EVERY_S = 5.0
_ESTIMATE_AFTER_S = 3.0  # since the first result: what is known before says how long a start takes
_BUSY_FROM_S = 10.0
_LOOK_S = 1.0


def shown(text: str, limit: int = 200) -> str:
    """Text from a corpus, made harmless: control characters escaped, markup off, cut at `limit` characters."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return escape("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut))


def with_meaning(reason: str) -> str:
    """A reason with what happened; a rule of the config's says it by its name."""
    return f"{reason}: {REASONS[reason]}" if reason in REASONS else reason


@dataclass
class PhaseReport:
    """What a phase did: rows seen = kept + rejected by reason, in this run and in the table as it stands."""

    phase: str
    num_read: int = 0  # objects or media that were read and decoded in this run
    num_seen: int = 0
    num_kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    num_copies: int = 0  # rows whose content was known already
    seconds: float = 0.0
    rows_per_s: float | None = None  # from the first result to the last commit: without the start of workers
    notes: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For the run's record."""
        return {
            "phase": self.phase,
            "num_read": self.num_read,
            "num_seen": self.num_seen,
            "num_kept": self.num_kept,
            "rejected": dict(self.rejected),
            "num_copies": self.num_copies,
            "seconds": round(self.seconds, 2),
            "rows_per_s": self.rows_per_s,
            "notes": self.notes,
            **self.numbers,
        }


class Meter:
    """Live progress of a phase, a bar in a terminal and a line every half minute elsewhere, also where nothing comes
    out; fills a PhaseReport. `observers` get its Progress whenever it changes.
    """

    def __init__(
        self, console: Console, report: PhaseReport, total: int, unit: str, observers: Sequence[Observer] = ()
    ):
        self.console, self.report, self.total, self.unit = console, report, total, unit
        self.arrived_rows = self.num_lost = 0
        self._observers, self._numbers = observers, dict[str, float]()
        self._start = self._last = self._heard = time.monotonic()
        self._first: tuple[float, int] | None = None  # when results came first, and how many
        self._bar: Bar | None = None
        self._is_over, self._telling = threading.Event(), threading.Lock()
        self._every_s = _EVENT_EVERY_S if isinstance(console, EventConsole) else _PLAIN_EVERY_S
        self._last += min(_FIRST_PLAIN_S, self._every_s) - self._every_s  # the first line comes sooner
        self._text = ""
        self._judged: Counter[str | None] = Counter()  # verdicts of rows that arrived and are not committed yet
        self._total_files = self._num_done = 0  # where files are containers, and rows their media

    def __enter__(self) -> "Meter":
        if self.console.is_terminal:
            name = TextColumn(f"{self.report.phase:>9}")
            line = TextColumn("{task.fields[line]}")
            self._bar = Bar(name, BarColumn(), line, TimeElapsedColumn(), console=self.console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total or None, line="starting workers")
        else:
            threading.Thread(target=self._tell_silence, name="progress", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.report.seconds = time.monotonic() - self._start
        self._is_over.set()
        if self._bar:
            self._bar.stop()
        if kind is not None and self.arrived_rows:
            self.console.print(f"  {self.report.phase}: stopped at {self._line()}", highlight=False)

    def note(self, text: str) -> None:
        """Something the person should know."""
        self.report.notes.append(text)
        self.console.print(f"  {self.report.phase}: {text}", style="yellow", highlight=False)

    def busy(self, pools: list[dict[str, Any]], span_s: float) -> None:
        """How busy the workers of each pool were (flow/busy.py): recorded, and shown of all but short flows."""
        self.report.numbers["pools"] = pools
        if pools and span_s >= _BUSY_FROM_S:
            shares = (f"{each['pool']} {each['busy']:.0%} of {each['workers']}" for each in pools)
            self.console.print(f"  {self.report.phase}: workers busy: {', '.join(shares)}", highlight=False)

    def arrived(self, num_rows: int) -> None:
        """The results of `num_rows` rows of the todo came out of the last stage; the last block may be shorter."""
        self.arrived_rows = min(self.arrived_rows + num_rows, self.total or self.arrived_rows + num_rows)
        self._first = self._first or (time.monotonic(), self.arrived_rows)
        self._show()

    def lost(self, num_rows: int) -> None:
        """So many rows went with a worker that died."""
        self.num_lost += num_rows
        self.note(f"{num_rows} rows were lost with a worker that died; trying them again")

    def judged(self, verdicts: Mapping[str | None, int]) -> None:
        """So many rows more were kept (null) or rejected for a reason; they are not committed yet."""
        self._judged.update(verdicts)

    def unpacked(self, num_rows: int, num_done: int) -> None:
        """`num_rows` media of containers came out of the last stage; `num_done` more files are through to their end."""
        self._num_done += num_done
        self._total_files = self._total_files or self.total
        self.total, self.unit = 0, "media"
        self.arrived_rows += num_rows
        self._first = self._first or (time.monotonic(), self.arrived_rows)

    def at(self, done: int, text: str, numbers: Mapping[str, float] | None = None) -> None:
        """`done` of `total` units are through; `text` says how it goes, `numbers` the same by name."""
        self.arrived_rows = done
        self._first = self._first or (time.monotonic(), done)
        self._text, self._numbers = text, dict(numbers or {})
        self._show()

    def progress(self) -> Progress:
        """How far it is now."""
        num_kept, rejected = self.report.num_kept + self._judged[None], Counter(self.report.rejected)
        for reason, count in list(self._judged.items()):  # more may come while this is told
            if reason is not None:
                rejected[reason] += count
        rate, left_s = self._told_pace()
        return Progress(
            self.report.phase,
            self.unit,
            self.arrived_rows,
            self.total,
            num_kept,
            dict(rejected),
            self._judged.total(),
            self.num_lost,
            rate,
            left_s,
            self._since(self._heard),
            self._numbers,
            self._line(),
        )

    def settled(self, keys: pa.Table) -> None:
        """Rows were committed; `keys` has reject_reason and is_fresh."""
        self._judged.clear()
        fresh = keys.filter(keys["is_fresh"])
        self.report.num_copies += keys.num_rows - fresh.num_rows
        self.report.num_seen += fresh.num_rows
        for reason, count in verdicts_of(fresh).items():
            if reason is None:
                self.report.num_kept += count
            else:
                self.report.rejected[reason] += count
        self.report.rows_per_s = self._rate()
        self._show()

    def _rate(self) -> float | None:
        """Rows a second since the first result; null before the second."""
        if self._first is None or self.arrived_rows == self._first[1]:
            return None
        return (self.arrived_rows - self._first[1]) / max(time.monotonic() - self._first[0], 1e-6)

    def _line(self) -> str:
        """How far, how fast, what so far, and how long still, once the rate means something."""
        done = f"{self.arrived_rows}/{self.total} {self.unit}"
        if self._total_files:
            done = f"{self.arrived_rows} {self.unit} of {self._num_done}/{self._total_files} files"
        text = self._text or self._verdicts()
        return "  ".join(part for part in (done, *self._pace(text)) if part)

    def _verdicts(self) -> str:
        """Nothing before there is one: those of rows on other machines come a little later than the rows' number."""
        num_kept, num_rejected = self.report.num_kept, self.report.rejected.total()
        waiting = self._judged.total()
        kept = num_kept + self._judged[None]
        rejected = num_rejected + waiting - self._judged[None]
        if not kept + rejected:
            return ""
        return f"kept {kept}, rejected {rejected}" + (f", unwritten {waiting}" if waiting else "")

    def _pace(self, text: str) -> tuple[str, ...]:
        """`text` between the rate and the time left, where these are known."""
        rate, left_s = self._told_pace()
        before = () if rate is None else (f"{rate:.1f}/s",)
        return (*before, text) if left_s is None else (*before, text, f"left {left_s:.0f} s")

    def _told_pace(self) -> tuple[float | None, float | None]:
        """Units a second and seconds left, null until they mean something."""
        rate = self._rate()
        if rate is None or self._first is None or self._since(self._first[0]) < _ESTIMATE_AFTER_S:
            return None, None
        if not self._total_files:
            return rate, max(0, self.total - self.arrived_rows) / rate
        if not self._num_done:
            return rate, None
        return rate, self._since(self._start) * (self._total_files / self._num_done - 1)

    @staticmethod
    def _since(moment: float) -> float:
        return time.monotonic() - moment

    def _show(self) -> None:
        self._heard = time.monotonic()
        for observer in self._observers:
            observer(self.progress())
        if self._bar:
            self._bar.update(self._task, total=self.total or None, completed=self.arrived_rows, line=self._line())
        else:
            self._tell()

    def _tell(self) -> None:
        """A line, where the last one is long ago."""
        with self._telling:
            if time.monotonic() - self._last < self._every_s:
                return
            self._last = time.monotonic()
            if isinstance(self.console, EventConsole):
                self.console.tell(self.progress())
            else:
                self.console.print(f"  {self.report.phase}: {self._line()}", highlight=False)

    def _tell_silence(self) -> None:
        """The line of a phase from which no result comes for a while."""
        while not self._is_over.wait(_LOOK_S):
            self._tell()


def table(title: str, *columns: str) -> Table:
    """An empty table in the house style; columns that end in '#' are right-aligned numbers."""
    made = Table(
        title=title, title_justify="left", title_style="bold", header_style="", pad_edge=False, min_width=len(title)
    )
    for column in columns:
        made.add_column(column.rstrip("#"), justify="right" if column.endswith("#") else "left")
    return made


def verdicts_of(rows: pa.Table) -> dict[str | None, int]:
    """How many rows were kept (null), and rejected for each reason."""
    return {item["values"]: item["counts"] for item in pc.value_counts(rows["reject_reason"]).to_pylist()}


def reasons_of(rows: pa.Table) -> dict[str, int]:
    """Rejected rows by reason, most first."""
    counts = pc.value_counts(rows["reject_reason"].drop_null()).to_pylist()
    return {
        item["values"]: item["counts"] for item in sorted(counts, key=lambda item: (-item["counts"], item["values"]))
    }
