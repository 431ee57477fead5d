"""Captions that a catalog holds, or examples of captions put together -> a training: pairs to learn from and pairs held
out, under one key.
"""

import json
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill import stages
from tokenmill.pipeline.captioner.joins import Joins, examples_of, identity as joins_identity, prompt_of
from tokenmill.pipeline.captioner.pairs import CAPTION, SAID, SPAN, CatalogPairs, identity, prompts, tidied
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import ConfigError, RunConfig
from tokenmill.training.captioner.config import CaptionerTrainConfig
from tokenmill.training.captioner.pairs import is_held_out

WRITTEN = ["media_id", "span", "start_s", "end_s", "caption", "run_id"]  # of captions


@dataclass(frozen=True)
class Job:
    """A training as its workers need to know it. `rows`: those to learn from and those held out, in this order."""

    config: CaptionerTrainConfig
    rows: pa.Table
    num_held_out: int
    fetched: str
    key: str

    @property
    def num_pairs(self) -> int:
        """To learn from."""
        return self.rows.num_rows - self.num_held_out

    @property
    def train(self) -> CatalogPairs | Joins:
        """Pairs to learn from."""
        return self._pairs(self.rows.slice(0, self.num_pairs))

    @property
    def held_out(self) -> CatalogPairs | Joins:
        """Pairs that it never learns from."""
        return self._pairs(self.rows.slice(self.num_pairs))

    @property
    def names(self) -> list[str]:
        """Captioners whose captions are put together; none where it looks."""
        read = self.rows["read"].to_pylist() if self.config.joins is not None else []
        return list(dict.fromkeys(name for texts in read for name in json.loads(texts)))

    def _pairs(self, rows: pa.Table) -> CatalogPairs | Joins:
        return CatalogPairs(self.config, rows, self.fetched) if self.config.joins is None else Joins(self.config, rows)


def check(config: CaptionerTrainConfig) -> None:
    """What can be known before any work. Raises ConfigError, PromptError and TrainingError."""
    if config.model is None and config.scratch is None:
        raise ConfigError(
            "captioner.train.model: name the weights to start from, a hub name or a folder; or set "
            "captioner.train.scratch={} for a new small model"
        )
    if config.lora is not None:
        config.lora.check_installed("captioner.train.lora")
    if config.joins is None:
        prompts(config)
    else:
        prompt_of(config)


def job_of(config: RunConfig) -> Job:
    """The training of a config on its examples, or on the captions that its catalog holds now.

    Raises CatalogError without captions, or without any to hold out; ConfigError, PromptError and CaptionError.
    """
    train = config.captioner.train
    if train.joins is not None:
        rows = examples_of(train.joins)
        key, where = joins_identity(train, rows), train.joins
    else:
        rows = _of_catalog(config)
        key, where = identity(train, rows), Catalog(config.root).root
    is_out = pa.array([is_held_out(media_id, train.held_out_share) for media_id in rows["media_id"].to_pylist()])
    held_out, kept = rows.filter(is_out), rows.filter(pc.invert(is_out))
    if not held_out.num_rows or not kept.num_rows:
        raise CatalogError(
            f"{where}: of {rows.num_rows} media with captions {held_out.num_rows} are held out: too few to learn from "
            "or to judge on; change captioner.train.held_out_share"
        )
    return Job(train, pa.concat_tables([kept, held_out]), held_out.num_rows, config.fetched, key)


def _of_catalog(config: RunConfig) -> pa.Table:
    train, catalog = config.captioner.train, Catalog(config.root)
    kinds = [kind for kind in prompts(train) if train.ask.serves in ("all", f"{kind}s")]
    rows = _captioned(catalog, train.captions, kinds)
    if not rows.num_rows:
        hint = (
            "kept media have no source captions; `tokenmill status` shows what there is"
            if train.captions == "source"
            else f"{train.captions} has written none; run `tokenmill caption` with it first, or set "
            "captioner.train.captions=source"
        )
        raise CatalogError(f"{catalog.root}: no captions to learn from: {hint}")
    return rows


def _captioned(catalog: Catalog, captions: str, kinds: list[str]) -> pa.Table:
    """Kept media of these kinds with captions, in the order of their ids, which is random."""
    where = pc.field("reject_reason").is_null() & pc.field("kind").isin(kinds)
    media = catalog.media.scan([*stages.PLACES.names, *SAID], where)
    if captions == "source":
        whole = pa.nulls(media.num_rows, pa.float64())
        rows = media.append_column(SPAN[0], whole).append_column(SPAN[1], whole)
        return _with_answers(rows, media["source_caption"])
    is_of = pc.field("reject_reason").is_null() & (pc.field("captioner") == captions)
    return paired(media, catalog.captions.scan(WRITTEN, is_of))


def paired(media: pa.Table, written: pa.Table) -> pa.Table:
    """Media with what a captioner wrote of them, `written` with the columns WRITTEN, that of the last run where there
    are two; of a long clip a row for each span. Ids of runs are in order of time.
    """
    numbers = written.append_column("number", pa.array(range(written.num_rows), pa.int64())).sort_by("run_id")
    last = numbers.group_by(["media_id", "span"], use_threads=False).aggregate([("number", "last")])
    written = written.take(last["number_last"])
    at = pc.index_in(written["media_id"], value_set=media["media_id"].combine_chunks())
    rows, written = media.take(at.drop_null()), written.filter(pc.is_valid(at))
    rows = rows.append_column(SPAN[0], written["start_s"]).append_column(SPAN[1], written["end_s"])
    return _with_answers(rows, written["caption"])


def _with_answers(rows: pa.Table, captions: pa.ChunkedArray) -> pa.Table:
    answers = tidied(captions)
    found = rows.append_column(CAPTION, answers).filter(pc.is_valid(answers))
    return found.sort_by([("media_id", "ascending"), (SPAN[0], "ascending")])
