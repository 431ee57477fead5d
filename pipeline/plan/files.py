"""The plan of curate: files to read, verdicts that change, what comes and goes in the tables; nothing is written.

What is not read yet cannot be counted: media of new and changed files appear in the phases after curate as "what curate
keeps of N files". Where no file is to be read, everything is known.
"""

from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.tables import Catalog, Table
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.refresh import fingerprints, verdicts
from tokenmill.pipeline.refresh.arrow import NO_IDS, count, distinct, is_in, without
from tokenmill.pipeline.refresh.changed_keys import Why
from tokenmill.pipeline.refresh.changes import SourceChanges, source_changes
from tokenmill.pipeline.refresh.sources import Listing, with_captions
from tokenmill.pipeline.refresh.steps import NOW, Outlook, Step, counted
from tokenmill.pipeline.refresh.upkeep import Foreseen, Upkeep, orphans, upkeep
from tokenmill.stages.select.duplicates import KEPT, Verdicts, duplicates_fingerprints, find_duplicates

_MEASURED = ("curate.read", "curate.score", "curate.split")


@dataclass(frozen=True)
class CuratePlan:
    """What curate is to do."""

    steps: list[Step]
    todo: pa.Table  # rows of LISTING to read
    changes: SourceChanges
    judged: pa.Array  # ids of media whose verdict changes by the rules
    reopened: pa.Array  # ids of files that are sent back for scores
    recaptioned: pa.Table  # rows of LISTING whose caption alone changed, with `source_caption`
    duplicates: Verdicts | None  # null: known when the files have been read
    outlook: Outlook
    is_exact: bool = field(default=True, init=False)

    @classmethod
    def nothing(cls, told: list[str], changes: SourceChanges) -> "CuratePlan":
        """Where all is as it is to be, and `changes` say so of the sources."""
        steps = [Step("curate", why, 0) for why in told]
        recaptioned = changes.recaptioned.append_column("source_caption", NO_IDS)
        return cls(steps, changes.todo, changes, NO_IDS, NO_IDS, recaptioned, None, NOW)

    @property
    def is_nothing(self) -> bool:
        """Every table stays as it is."""
        return self.outlook.is_now


def plan_curate(
    config: RunConfig, catalog: Catalog, listing: Listing | None, changes: SourceChanges | None = None
) -> CuratePlan:
    """`listing`: what the sources hold; null: the verdicts alone, on the media that there are. `changes`: how it
    differs from what is recorded, where that is known.
    """
    if listing is None:
        changes = SourceChanges()
    elif changes is None:
        changes = source_changes(listing, catalog, fingerprints.of_curate(config))
    return _Curate(config, catalog).plan(listing, changes)


class _Curate:
    """Fills the steps in the order in which they are told."""

    def __init__(self, config: RunConfig, catalog: Catalog):
        self._config, self._catalog, self._why = config, catalog, Why(config, catalog.root)
        self._steps: list[Step] = []
        self._tokens_change = False
        self._told = NO_IDS  # media of which the steps say that they go

    def plan(self, listing: Listing | None, changes: SourceChanges) -> CuratePlan:
        config, catalog, fingerprint = self._config, self._catalog, fingerprints.of_curate(self._config)
        self._tell_changes(changes)
        texts = with_captions(changes.recaptioned)["source_caption"]
        captions = dict(zip(changes.recaptioned["uri"].to_pylist(), texts.to_pylist(), strict=True))
        found = upkeep(catalog, fingerprint, Foreseen(changes.gone, changes.changed, captions))
        judged = verdicts.judge(config, catalog, found.placed)
        todo, read = (changes.todo, NO_IDS) if listing is None else self._todo(listing, changes, judged)
        self._tell_verdicts(judged, found)
        if captions:
            self._add("source captions changed", 0, "", counted(len(captions), "caption"))
        is_lost = is_in(judged.file_id, found.lost)
        self._tell_gone(changes, judged, is_lost, bool(todo.num_rows))
        is_stale = pc.and_(is_in(judged.file_id, found.stale), pc.not_equal(judged.fingerprint, fingerprint))
        is_going = pc.or_(is_lost, is_stale)
        kept = distinct(judged.media_id.filter(pc.and_(judged.is_kept, pc.invert(is_going))))

        recorded = catalog.duplicates.scan(["media_id", "duplicate_of", "method", "fingerprint", "run_id"])
        duplicates, undecided = None, NO_IDS
        if todo.num_rows:
            aside, hanging = self._duplicates_so_far(recorded, kept)
            kept = without(kept, aside)
            undecided = distinct(judged.of_files(read), hanging, found.moved, found.renamed)
        else:
            as_it_is = not (len(judged.ids) or found.change)
            which = None if as_it_is else pc.field("media_id").isin(kept)
            duplicates = find_duplicates(catalog, config.curate.duplicates, kept=which)
            aside, kept = duplicates.aside, without(kept, duplicates.aside)
            self._tell_duplicates(duplicates, recorded)
            self._tell_rest(found, kept, bool(len(changes.gone) or captions or len(found.renamed)))
        outlook = NOW
        if self._steps:
            at_risk = distinct(undecided, judged.media_id.filter(is_going), aside)
            outlook = Outlook(
                kept=kept,
                num_open_files=todo.num_rows,
                open=undecided,
                recaptioned=found.recaptioned if config.caption.what.readers("source_caption") else NO_IDS,
                redescribed=found.redescribed if config.caption.what.readers("metadata") else NO_IDS,
                tokens_change=self._tokens_change or bool(_num_rows(catalog.tokens, at_risk)),
            )
        else:
            num_listed = changes.num_listed
            self._add(f"nothing: {counted(num_listed, 'file')} known and unchanged", 0)
        recaptioned = changes.recaptioned.append_column("source_caption", texts)
        reopened = NO_IDS if listing is None else judged.open_files
        return CuratePlan(self._steps, todo, changes, judged.ids, reopened, recaptioned, duplicates, outlook)

    def _add(self, why: str, num_read: int | None, computes: str = "", writes: str = "") -> None:
        self._steps.append(Step("curate", why, num_read, computes, writes))

    def _tell_changes(self, changes: SourceChanges) -> None:
        for why, number in (("new", changes.num_new), ("changed", len(changes.changed))):
            if number:
                self._add(why, number, "scores, verdicts", "their media")
        if changes.num_remeasured:
            why = self._why.of_rows(changes.remeasured, "last_seen_run", *_MEASURED)
            self._add(why, changes.num_remeasured, "scores, verdicts", "their media")

    def _todo(self, listing: Listing, changes: SourceChanges, judged: verdicts.Judgement) -> tuple[pa.Table, pa.Array]:
        """Rows of LISTING to read, those that are sent back for scores among them; ids of the files known of them."""
        sources, todo = self._catalog.sources.scan(["uri", "file_id"], pc.field("status") == "present"), changes.todo
        places = sources.filter(is_in(sources["file_id"], judged.open_files))
        again = listing.rows.read(pc.field("uri").isin(without(places["uri"], todo["uri"]).combine_chunks()))
        if again.num_rows:
            self._add(self._why.of_rules(), again.num_rows, "scores", "their media")
            todo = pa.concat_tables([todo, again]).sort_by("uri")
        return todo, distinct(sources.filter(is_in(sources["uri"], todo["uri"]))["file_id"])

    def _tell_verdicts(self, judged: verdicts.Judgement, found: Upkeep) -> None:
        """By the rules alone, and by what changes with the names of media."""
        ids = without(judged.ids, found.renamed)
        if len(ids):
            writes = f"verdicts of {len(ids)} media{self._without(without(judged.rejected, found.renamed))}"
            self._add(self._why.of_rules("rules"), 0, "verdicts on stored scores", writes)
        if number := len(found.renamed):
            rejected = judged.rejected.filter(is_in(judged.rejected, found.renamed))
            writes = f"whether extensions fit, verdicts of {number} media{self._without(rejected)}"
            self._add("names of files changed", 0, "verdicts on stored scores", writes)

    def _tell_gone(
        self, changes: SourceChanges, judged: verdicts.Judgement, is_lost: pa.ChunkedArray, reads: bool
    ) -> None:
        if not len(changes.gone):
            return
        of_gone = self._catalog.sources.scan(["file_id"], pc.field("uri").isin(changes.gone))["file_id"]
        ids = distinct(judged.media_id.filter(pc.and_(is_lost, is_in(judged.file_id, of_gone))))
        again = ", unless a file to read holds the same" if reads and len(ids) else ""
        removed = f"-{len(ids)} media{self._without(ids)}{again}" if len(ids) else "their state"
        self._add(f"{counted(len(changes.gone), 'file')} gone", 0, "", removed)

    def _duplicates_so_far(self, recorded: pa.Table, kept: pa.Array) -> tuple[pa.Array, pa.Array]:
        """With files to read: media for which another one stands, as recorded; and media to be decided on."""
        part, other = self._config.curate.duplicates, recorded
        is_on = part.near_radius is not None or part.semantic_eps is not None
        if is_on:
            other = recorded.filter(pc.invert(is_in(recorded["fingerprint"], pa.array(duplicates_fingerprints(part)))))
        if other.num_rows:
            why = self._why.of_rows(other, "run_id", "curate.duplicates")
            self._add(why, 0, "duplicates by stored hashes", f"verdicts on {len(kept)} media")
            return NO_IDS, kept if is_on else NO_IDS
        if recorded.num_rows:
            self._add("media come or go", 0, "duplicates by stored hashes", "verdicts on those")
        aside = recorded.filter(pc.not_equal(recorded["method"], KEPT))
        holds = pc.and_(is_in(aside["duplicate_of"], kept), is_in(aside["media_id"], kept))
        hanging = distinct(aside.filter(pc.invert(holds))["media_id"])
        unknown = without(kept, recorded["media_id"]) if is_on else NO_IDS
        return distinct(aside.filter(holds)["media_id"]), distinct(hanging, unknown)

    def _tell_duplicates(self, found: Verdicts, recorded: pa.Table) -> None:
        if not found.change:
            return
        known = pa.array(duplicates_fingerprints(self._config.curate.duplicates))
        other = recorded.filter(pc.invert(is_in(recorded["fingerprint"], known)))
        why = self._why.of_rows(other, "run_id", "curate.duplicates") if other.num_rows else "media come or go"
        was_aside = recorded.filter(pc.not_equal(recorded["method"], KEPT))["media_id"]
        removed = self._without(without(found.aside, was_aside))
        writes = f"verdicts on {max(found.new.num_rows, len(found.obsolete))} media{removed}"
        self._add(why, 0, "duplicates by stored hashes", writes)

    def _tell_rest(self, found: Upkeep, kept: pa.Array, is_explained: bool) -> None:
        """What a run left undone that was stopped."""
        rest = []
        for table in (self._catalog.captions, self._catalog.tokens):
            left = orphans(table, kept)
            self._tokens_change |= table.name == "tokens" and bool(len(left))
            if len(left) and (number := len(without(left, self._told))):
                rest.append(f"-{number} {table.name}")
        if rest or (found.change and not is_explained):
            self._add("left by a run that was stopped", 0, "", ", ".join(rest) or "places and captions of media")

    def _without(self, ids: pa.Array) -> str:
        """What leaves `captions` and `tokens` with these media."""
        self._told = distinct(self._told, ids)
        found = []
        for table in (self._catalog.captions, self._catalog.tokens):
            if number := _num_rows(table, ids):
                found.append(f", -{number} {table.name}")
                self._tokens_change |= table.name == "tokens"
        return "".join(found)


def _num_rows(table: Table, ids: pa.Array) -> int:
    return count(is_in(table.scan(["media_id"])["media_id"], ids)) if len(ids) else 0
