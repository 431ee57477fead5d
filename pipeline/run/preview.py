"""What a run will read, compute and write, and why, told before it does: config, sources and catalog -> `Step`s.

The same comparisons as the run's own (pipeline/refresh/refresh.py), on ids, etags, fingerprints and the scores that
rules read; nothing is written, no medium opened. A row names the run that made it, and the record of that run its
config (pipeline/catalog/records.py): so a fingerprint that changed is told as the keys that changed.

What is not read yet cannot be counted: media of new and changed files appear in the phases after curate as "what curate
keeps of N files".
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill import storage
from tokenmill.pipeline.catalog.forgotten import Forgotten
from tokenmill.pipeline.catalog.records import Record, newest_first, read_record
from tokenmill.pipeline.catalog.tables import Catalog, Table
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.refresh import refresh
from tokenmill.pipeline.refresh.sources import Listing
from tokenmill.pipeline.reports.terminal import Step, counted
from tokenmill.pipeline.run.phases import tokens_fingerprints, train_job
from tokenmill.stages.select.decide import columns_read, decide
from tokenmill.stages.select.duplicates import KEPT, duplicate_ids, duplicates_fingerprints
from tokenmill.training.job import DONE

_UNSET = object()
_SHOWN_KEYS = 3
_SHOWN_CHARS = 48
_LOOKED_AT = 20  # records, newest first, for the config of rows and rules
_STATE = ["media_id", "file_id", "uri", "fingerprint"]
_RULES = ("curate.decide", "curate.text", "curate.clip", "curate.all_scores")
_MEASURED = ("curate.read", "curate.score", "curate.split")


def foresee(config: RunConfig, catalog: Catalog, phases: Iterable[str], listing: Listing | None) -> list[Step]:
    """The steps of a run of `phases`, in their order; `listing` is what the sources hold, for curate.

    Raises CatalogError for a version that cannot be trained on any more.
    """
    view = _View(config, catalog)
    for phase in phases:
        if phase == "curate":
            assert listing is not None
            view.curate(listing)
        else:
            getattr(view, phase)()
    return view.steps


def changed_keys(before: Record, after: Record, below: tuple[str, ...]) -> list[str]:
    """`key old -> new` for each key of two configs that differs below one of `below` and changes results."""
    old, new = _flat(before), _flat(after)
    names = [name for name in sorted(old | new) if any(name == top or name.startswith(f"{top}.") for top in below)]
    return [
        f"{name} {_shown(old.get(name, _UNSET))} -> {_shown(new.get(name, _UNSET))}"
        for name in names
        if old.get(name, _UNSET) != new.get(name, _UNSET)
    ]


def _flat(document: Record, above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in document.items():
        if not name.endswith("resources"):
            found |= _flat(value, f"{above}{name}.") if isinstance(value, dict) and value else {f"{above}{name}": value}
    return found


def _shown(value: Any) -> str:
    if value is _UNSET:
        return "(unset)"
    text = "null" if value is None else str(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"


def _joined(keys: list[str]) -> str:
    more = f"; {len(keys) - _SHOWN_KEYS} keys more" if len(keys) > _SHOWN_KEYS else ""
    return "; ".join(keys[:_SHOWN_KEYS]) + more


class _View:
    """The catalog as it will be after the steps so far."""

    def __init__(self, config: RunConfig, catalog: Catalog):
        self.config, self.catalog = config, catalog
        self.steps: list[Step] = []
        self._document = config.model_dump(mode="json")
        self._media_columns = list(dict.fromkeys([*_STATE, *columns_read(config.curate.decide)]))
        self._kept: pa.Array | None = None
        self._recaptioned = pa.array([], pa.string())  # media whose caption row will be made anew
        self._num_open_files = 0  # files whose media are not known yet
        self._open = pa.array([], pa.string())  # media of files that are read again: they may be rejected now
        self._tokens_change = False

    def _add(self, phase: str, why: str, num_read: int | None, computes: str = "", writes: str = "") -> None:
        self.steps.append(Step(phase, why, num_read, computes, writes))

    def curate(self, listing: Listing) -> None:
        """New, changed, measured by another config, judged by other rules, gone."""
        config, catalog, first = self.config, self.catalog, len(self.steps)
        fingerprint = refresh.curate_fingerprint(config)
        listing = replace(listing, rows=Forgotten.load(catalog.root).without(listing.rows))
        changes = refresh.source_changes(listing, catalog, fingerprint)
        media = catalog.media.scan(self._media_columns)
        decided = decide(media, config.curate.decide, config.curate.scorers)
        columns = ["uri", "etag", "file_id", "fingerprint", "last_seen_run"]
        sources = catalog.sources.scan(columns, pc.field("status") == "present")

        for why, count in (("new", changes.num_new), ("changed", changes.num_changed)):
            if count:
                self._add("curate", why, count, "scores, verdicts", "their media")
        is_todo = _in(sources["uri"], changes.todo["uri"])
        stale = sources.filter(pc.and_(is_todo, pc.not_equal(sources["fingerprint"], fingerprint)))
        if changes.num_remeasured:
            why = self._why(stale, "last_seen_run", _MEASURED)
            self._add("curate", why, changes.num_remeasured, "scores, verdicts", "their media")

        files = refresh.open_files(decided, config)
        reopened = sources.filter(pc.and_(_in(sources["file_id"], files), pc.invert(is_todo)))
        reopened = reopened.filter(_in(reopened["uri"], listing.rows["uri"]))
        if reopened.num_rows:
            self._add(
                "curate", self._why_rules("scores that rules ask for"), reopened.num_rows, "scores", "their media"
            )
        self._num_open_files = changes.todo.num_rows + reopened.num_rows
        is_read = pc.or_(is_todo, _in(sources["uri"], reopened["uri"]))
        is_open = _in(media["file_id"], sources.filter(is_read)["file_id"])
        self._open = media.filter(is_open)["media_id"].combine_chunks()

        judged = decided.filter(refresh.verdicts_differ(media, decided))
        if judged.num_rows:
            was_kept = media.filter(pc.is_null(media["reject_reason"]))["media_id"]
            out = judged.filter(pc.and_(pc.is_valid(judged["reject_reason"]), _in(judged["media_id"], was_kept)))
            verdicts = f"verdicts of {judged.num_rows} media{self._without(out['media_id'])}"
            self._add("curate", self._why_rules("rules"), 0, "verdicts on stored scores", verdicts)

        if num_texts := changes.recaptioned.num_rows:
            of_media = _in(decided["uri"], changes.recaptioned["uri"])
            if config.caption.captioner == "source":
                self._recaptioned = decided.filter(of_media)["media_id"].combine_chunks()
            self._add("curate", "source captions changed", 0, "", counted(num_texts, "caption"))

        after = self._gone(decided, sources, changes)
        self._duplicates(after, bool(self._num_open_files or judged.num_rows))
        if len(self.steps) == first:
            self._add("curate", f"nothing: {counted(listing.rows.num_rows, 'file')} known and unchanged", 0)

    def _gone(self, media: pa.Table, sources: pa.Table, changes: refresh.SourceChanges) -> pa.Table:
        """The media that stay; those of changed files, which count as not known yet, do not."""
        is_gone = _in(sources["uri"], pa.array(changes.gone, pa.string()))
        at = pc.index_in(sources["uri"], value_set=changes.todo["uri"].combine_chunks())
        is_changed = pc.fill_null(pc.not_equal(sources["etag"], changes.todo["etag"].take(at)), False)
        staying = sources.filter(pc.invert(pc.or_(is_gone, is_changed)))["file_id"]
        is_lost = pc.invert(_in(media["file_id"], staying))
        lost = media.filter(pc.and_(is_lost, _in(media["file_id"], sources.filter(is_gone)["file_id"])))
        if changes.gone:
            again = ", unless a file to read holds the same" if changes.todo.num_rows and lost.num_rows else ""
            removed = f"-{lost.num_rows} media{self._without(lost['media_id'])}{again}" if lost.num_rows else ""
            self._add("curate", f"{counted(len(changes.gone), 'file')} gone", 0, "", removed or "their state")
        return media.filter(pc.invert(is_lost))

    def _duplicates(self, media: pa.Table, anew: bool) -> None:
        """Verdicts on duplicates as recorded, as far as the config still says so."""
        part = self.config.curate.duplicates
        kept = pc.unique(media.filter(pc.is_null(media["reject_reason"]))["media_id"])
        recorded = self.catalog.duplicates.scan(["media_id", "duplicate_of", "method", "fingerprint", "run_id"])
        other = recorded.filter(pc.invert(_in(recorded["fingerprint"], pa.array(duplicates_fingerprints(part)))))
        if part.near_radius is None and part.semantic_eps is None:
            other = recorded
        if other.num_rows:
            why = self._why(other, "run_id", ("curate.duplicates",))
            self._add("curate", why, 0, "duplicates by stored hashes", f"verdicts on {len(kept)} media")
        elif anew and recorded.num_rows:
            self._add("curate", "media come or go", 0, "duplicates by stored hashes", "verdicts on those")
        aside = recorded.filter(pc.and_(pc.not_equal(recorded["method"], KEPT), _in(recorded["duplicate_of"], kept)))
        still = pc.invert(_in(aside["fingerprint"], other["fingerprint"]))
        self._kept = kept.filter(pc.invert(_in(kept, aside.filter(still)["media_id"])))

    def caption(self) -> None:
        """Kept media without a caption of this captioner."""
        fingerprint, first = refresh.caption_fingerprint(self.config), len(self.steps)
        kept = self._kept_ids()
        rows = self.catalog.captions.scan(["media_id", "fingerprint", "run_id"])
        done = rows.filter(pc.equal(rows["fingerprint"], fingerprint))["media_id"]
        again = pc.and_(_in(kept, self._recaptioned), _in(kept, done))
        if num_again := _count(pc.and_(again, pc.invert(_in(kept, self._open)))):
            self._add("caption", "source captions changed", num_again, "captions", f"{num_again} captions")
        todo = kept.filter(pc.invert(_in(kept, done)))
        self._by_reason("caption", todo, rows, ("caption",), "captions")
        stale = rows.filter(_in(rows["media_id"], todo))["media_id"].combine_chunks()
        self._recaptioned = pa.concat_arrays([kept.filter(again), stale])
        if len(self.steps) == first:
            self._add("caption", f"nothing: {len(kept)} kept media captioned already", 0)

    def tokenize(self) -> None:
        """Kept, captioned media without codes of this tokenizer; captions that changed."""
        fingerprints, first = pa.array(tokens_fingerprints(self.config)), len(self.steps)
        kept = self._kept_ids()
        if not any(step.phase == "caption" for step in self.steps):
            kept = kept.filter(_in(kept, self.catalog.captions.scan(["media_id"])["media_id"]))
        rows = self.catalog.tokens.scan(["media_id", "fingerprint", "run_id"])
        done = rows.filter(_in(rows["fingerprint"], fingerprints))["media_id"]
        todo = kept.filter(pc.invert(_in(kept, done)))
        self._by_reason("tokenize", todo, rows, ("tokenize",), "codes")
        stale = pa.concat_arrays([self._recaptioned, refresh.stale_captions(self.catalog)]).unique()
        stale = stale.filter(pc.and_(_in(stale, done), _in(stale, kept)))
        if len(stale):
            self._add("tokenize", "captions changed; codes stay", 0, "", f"captions of {counted(len(stale), 'row')}")
        self._tokens_change |= len(self.steps) > first
        if len(self.steps) == first:
            self._add("tokenize", f"nothing: {len(kept)} captioned media encoded already", 0)

    def train(self) -> None:
        """The version of the tokens that there is, or the one that results."""
        if self._tokens_change:
            self._add("train", "the tokens change", None, "a model on the version that results", "checkpoints, model")
            return
        if self.catalog.tokens.is_new:
            self._add("train", "nothing: there are no tokens yet", 0)
            return
        job = train_job(self.config, self.catalog)
        version = job.tokens_version
        if storage.exists(job.at(DONE)):
            self._add("train", f"nothing: trained on tokens version {version}", 0)
            return
        num_rows = self.catalog.tokens.count(pc.field("reject_reason").is_null())
        keys: list[str] = []
        for record in self._records("train"):
            if any(phase.get("tokens_version") == version for phase in record["phases"]):
                keys = changed_keys(record["config"], self._document, ("train",))
                break
        why = _joined(keys) or f"tokens version {version}, not trained on with this config"
        self._add("train", why, num_rows, f"a model on version {version}", "checkpoints, model")

    def _kept_ids(self) -> pa.Array:
        if self._kept is None:
            ids = pc.unique(self.catalog.media.scan(["media_id"], pc.field("reject_reason").is_null())["media_id"])
            self._kept = ids.filter(pc.invert(_in(ids, duplicate_ids(self.catalog))))
        return self._kept

    def _by_reason(self, phase: str, todo: pa.Array, rows: pa.Table, below: tuple[str, ...], what: str) -> None:
        """Steps for media of another config, for those without a row, and for those that curate may still keep."""
        todo = todo.filter(pc.invert(_in(todo, self._open)))
        stale = rows.filter(_in(rows["media_id"], todo))
        num_stale = len(pc.unique(stale["media_id"]))
        if num_stale:
            self._add(phase, self._why(stale, "run_id", below), num_stale, what, f"{num_stale} {what}")
        if num_new := len(todo) - num_stale:
            self._add(phase, f"kept, without {what}", num_new, what, f"{num_new} {what}")
        if self._num_open_files:
            self._add(
                phase, f"what curate keeps of {counted(self._num_open_files, 'file')}", None, what, f"their {what}"
            )

    def _without(self, ids: pa.ChunkedArray) -> str:
        """What leaves `captions` and `tokens` with these media."""
        found = []
        for table in (self.catalog.captions, self.catalog.tokens):
            if num_rows := self._num_rows(table, ids):
                found.append(f", -{num_rows} {table.name}")
                self._tokens_change |= table.name == "tokens"
        return "".join(found)

    @staticmethod
    def _num_rows(table: Table, ids: pa.ChunkedArray) -> int:
        return _count(_in(table.scan(["media_id"])["media_id"], ids)) if len(ids) else 0

    def _why(self, stale: pa.Table, run_column: str, below: tuple[str, ...]) -> str:
        """The keys by which the config of these rows differs from this one."""
        if _count(pc.equal(stale["fingerprint"], refresh.REOPENED)) == stale.num_rows:
            return self._why_rules("scores that rules ask for")
        run_ids = pc.unique(stale[run_column]).to_pylist()
        for run_id in islice(sorted(run_ids, reverse=True), _LOOKED_AT):
            record = read_record(self.catalog.root, run_id)
            if record and (keys := changed_keys(record["config"], self._document, below)):
                return _joined(keys)
        return f"another {' or '.join(below)}"

    def _why_rules(self, otherwise: str) -> str:
        """The keys by which the last config that judged differs from this one."""
        for record in self._records("curate", "redecide"):
            return _joined(changed_keys(record["config"], self._document, _RULES)) or otherwise
        return otherwise

    def _records(self, *phases: str) -> Iterable[Record]:
        """Records of runs that had one of these phases, newest first."""
        for record in islice(newest_first(self.catalog.root), _LOOKED_AT):
            if {record["command"], *(phase["phase"] for phase in record["phases"])} & set(phases):
                yield record


def _in(values: Any, known: pa.Array | pa.ChunkedArray) -> Any:
    known = known.combine_chunks() if isinstance(known, pa.ChunkedArray) else known
    return pc.is_in(values, value_set=known)


def _count(mask: Any) -> int:
    return pc.sum(mask).as_py() or 0
