"""Media that go on and lack a row of a config, and the lines of a plan for them: for captions as for tokens."""

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.join import kept_without
from tokenmill.pipeline.catalog.tables import Catalog, Table
from tokenmill.pipeline.config import Cluster
from tokenmill.pipeline.refresh.arrow import distinct, is_in, without
from tokenmill.pipeline.refresh.changed_keys import Why
from tokenmill.pipeline.refresh.edits import superseded
from tokenmill.pipeline.refresh.steps import Outlook, Step, counted
from tokenmill.stages.table.columns import CHANGED, VANISHED

# Rows of media that were met at their place; the others are tried again, for by then it may be known where they stand.
WAS_READ = pc.coalesce(~pc.field("reject_reason").isin([VANISHED, CHANGED]), pc.scalar(True))


def media_todo(
    catalog: Catalog,
    table: Table,
    columns: list[str],
    standing: list[str],
    anew: pa.Array,
    outlook: Outlook,
    cluster: Cluster,
    of: pc.Expression | None = None,
) -> pa.Table:
    """Media that go on without a row, or one of `of`, in `table`; those of `anew` whether or not; less those that may
    be rejected.
    """
    done = pc.field("fingerprint").isin(standing) & WAS_READ
    if of is not None:
        done = done & of
    if len(anew):
        done = done & ~pc.field("media_id").isin(anew)
    rows = kept_without(catalog, columns, (table, done), outlook.kept, cluster)
    return rows.filter(pc.invert(is_in(rows["media_id"], outlook.open))) if len(outlook.open) else rows


class MediaSteps:
    """The steps of one phase: for media of another config, for those without a row, for those that curate may keep."""

    def __init__(self, phase: str, what: str, outlook: Outlook, rows: pa.Table, standing: list[str], why: Why):
        self.phase, self.what, self.steps, self.is_nothing = phase, what, list[Step](), True
        self.costs = ""  # told once, of all that the plan knows
        self._outlook, self._rows, self._why = outlook, rows, why
        self.done = distinct(rows.filter(is_in(rows["fingerprint"], pa.array(standing)))["media_id"])
        self._num_superseded = superseded(rows, standing).num_rows

    def add(self, why: str, num_read: int | None, computes: str = "", writes: str = "") -> None:
        self.is_nothing = False
        if num_read and self.costs:
            computes, self.costs = f"{computes}: {self.costs}", ""
        self.steps.append(Step(self.phase, why, num_read, computes, writes))

    def tell_again(self, todo: pa.Table) -> pa.Array:
        """Media that have a caption and get another one, because their source's is another."""
        again = distinct(todo["media_id"].filter(is_in(todo["media_id"], self.done)))
        if len(again):
            self.add("source captions changed", len(again), self.what, f"{len(again)} {self.what}")
        return again

    def tell_todo(self, todo: pa.Table, told: pa.Array, below: str) -> pa.Array:
        """Returns the media whose rows are of another config."""
        ids, what = without(distinct(todo["media_id"]), told), self.what
        stale = self._rows.filter(is_in(self._rows["media_id"], ids))
        changed = distinct(stale["media_id"])
        if len(changed):
            self.add(self._why.of_rows(stale, "run_id", below), len(changed), what, f"{len(changed)} {what}")
        if number := len(ids) - len(changed):
            self.add(f"kept, without {what}", number, what, f"{number} {what}")
        if number := self._outlook.num_open_files:
            self.add(f"what curate keeps of {counted(number, 'file')}", None, what, f"their {what}")
        return changed

    def close_quietly(self) -> None:
        """What a stopped run left."""
        if self._num_superseded and self.is_nothing:
            self.add("left by a run that was stopped", 0, "", f"-{self._num_superseded} older {self.what}")

    def close(self, nothing: str) -> None:
        """What a stopped run left, or that there is nothing."""
        self.close_quietly()
        if self.is_nothing:
            self.steps.append(Step(self.phase, nothing, 0))
