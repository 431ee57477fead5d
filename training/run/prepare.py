"""A job -> what every worker shares: text tokenizer, vocabulary, index and plan, made once under the run's folder.

    run/selected.parquet  which media data.select leaves, where it is used; written by who knows their scores
    run/dialogues.parquet data.dialogues with ids of media, likewise
    run/families.parquet  which media are held out together, likewise
    run/text/             tokenizer files and vocabulary.json
    run/index.parquet     one row per document; per piece of a text document
    run/plan.parquet      one row per placed document
    run/held_out/         index and plan of what data.held_out keeps for validation
    run/plan.json         hashes, counts; written last, so its presence says that the rest is whole

All of it is a pure function of the job, so a crash in the middle is cured by doing it again.
"""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from tokenmill import storage
from tokenmill.storage.errors import TrainingError
from tokenmill.storage.failures import as_damaged
from tokenmill.tokenizer.sequence import SequenceLayout
from tokenmill.tokenizer.text import load_text_tokenizer, train_text_tokenizer
from tokenmill.tokenizer.vocabulary import FILE_NAME, Vocabulary
from tokenmill.training.data.held_out import Fate
from tokenmill.training.data.index import Index, build_index, captions
from tokenmill.training.data.pairs import pair_index
from tokenmill.training.data.plan import Plan, make_plan, of_sort, sequence_tokens
from tokenmill.training.job import ANCESTORS, INPUTS, TrainJob, lineage
from tokenmill.training.run import given
from tokenmill.training.run.tables import read_table, write_table

_HELD_OUT = "held_out"  # folder


@dataclass(frozen=True)
class Prepared:
    """What every worker of a job starts from."""

    layout: SequenceLayout
    index: Index
    plan: Plan
    summary: dict[str, Any]  # plan.json
    dialogues: pa.Table | None = None  # rows of training/data/dialogues.py
    pairs: pa.Table | None = None  # rows of training/data/pairs.py, in place of all else
    held_out: tuple[Index, Plan] | None = None  # of validation: every document once, the same each time


def prepare(job: TrainJob) -> dict[str, Any]:
    """Make what is missing of the run's folder; return plan.json.

    Raises TrainingError when the folder belongs to another job, or when there is nothing to train on.
    """
    if (summary := job.read_summary()) is not None:
        return summary
    data, optimizer = job.config.data, job.config.optimizer
    tokenizer = _text_tokenizer(job)
    vocabulary = _vocabulary(job, tokenizer)
    layout = SequenceLayout(tokenizer, vocabulary)
    index, excluded = _index(job, layout)
    if data.mixture is not None:
        is_mixed = np.any([of_sort(index, sort) for sort in data.mixture], axis=0)
        excluded["not_in_mixture"] = int((~is_mixed).sum())
        index = index.of(is_mixed)
    unseen: Index | None = None
    if len(index.fate):
        unseen, near = index.of_fate(Fate.HELD_OUT), index.of_fate(Fate.NEAR_TRAINED)
        index, excluded["near_trained"] = index.of_fate(Fate.TRAINED), len(near)
        _check(data.held_out, len(unseen), len(index))
    plan = make_plan(index, data, job.config.seed, optimizer.steps, optimizer.epochs)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        vocabulary.save(Path(folder))
        storage.upload_folder(Path(folder), job.at("text"))
    write_table(index.to_table(), job.at("index.parquet"))
    write_table(plan.to_table(), job.at("plan.parquet"))
    if unseen is not None:
        _write_held_out(job, unseen)
    num_tokens = sequence_tokens(index, plan.documents, plan.is_null_caption)
    total_tokens = int(num_tokens.sum())
    summary = {
        "job": job.fingerprint,
        "plan": plan.hash(index),
        "config": job.config.model_dump(),
        "tokens_version": job.tokens_version,
        "tokens_fingerprint": job.tokens_fingerprint,
        "stage": job.stage,
        INPUTS: job.inputs,
        ANCESTORS: [] if job.parent is None else lineage(job.parent),
        "codebook_size": job.codebook_size,
        "num_documents": len(index),
        "num_videos": int(of_sort(index, "video").sum()),
        "num_dialogues": 0 if job.config.preferences else int(index.is_dialogue.sum()),
        "num_texts": index.num_texts,
        "num_text_pieces": int(index.is_text.sum()),
        "excluded": dict(+excluded),
        "held_out": {} if unseen is None else _num_by_sort(unseen),
        "num_steps": plan.num_steps,
        "num_packs": plan.num_packs,
        "num_tokens": total_tokens,
        "num_text_tokens": int(num_tokens[index.is_text[plan.documents]].sum()),
        "fill": total_tokens / (plan.num_packs * data.pack_tokens),
    }
    storage.write_json(job.at("plan.json"), summary)
    return summary


def _index(job: TrainJob, layout: SequenceLayout) -> tuple[Index, Counter[str]]:
    if (pairs := given.pairs(job)) is not None:
        return pair_index(pairs, layout, job.config.data)
    selected, dialogues = given.selected(job), given.dialogues(job)
    context_tokens = job.config.data.context_tokens
    return build_index(
        job.shard_uris, job.rows_used, layout, context_tokens, job.removed, selected, dialogues, given.held_out(job)
    )


def load_prepared(job: TrainJob) -> Prepared:
    """What `prepare` made. Raises FileNotFoundError before it."""
    summary = job.read_summary()
    if summary is None:
        raise FileNotFoundError(f"{job.at('plan.json')}: not there; call prepare() first")
    with as_damaged(job.at("text")), storage.local_folder(job.at("text")) as folder:
        layout = SequenceLayout(load_text_tokenizer(folder), Vocabulary.load(folder))
    with as_damaged(job.at("index.parquet")):
        index = Index.from_table(read_table(job.at("index.parquet")))
    with as_damaged(job.at("plan.parquet")):
        plan = Plan.from_table(read_table(job.at("plan.parquet")), summary["num_steps"], job.config.data.batch_packs)
        hash_ = plan.hash(index)
    if hash_ != summary["plan"]:
        raise TrainingError(
            f"{job.at('plan.parquet')}: damaged, its hash differs; delete {job.at('plan.json')} to redo"
        )
    held_out = _read_held_out(job) if summary.get("held_out") else None
    return Prepared(layout, index, plan, summary, given.dialogues(job), given.pairs(job), held_out)


def _check(share: float, num_held_out: int, num_trained: int) -> None:
    total = num_held_out + num_trained
    if not num_held_out:
        raise TrainingError(f"data.held_out {share:g} of {total} documents leaves none to validate on; raise it")
    if not num_trained:
        raise TrainingError(f"data.held_out {share:g} of {total} documents leaves none to train on; lower it")


def _num_by_sort(index: Index) -> dict[str, int]:
    """Documents, a text once for all its pieces."""
    counts = {sort: int(of_sort(index, sort).sum()) for sort in ("image", "video", "dialogue")}
    return {sort: number for sort, number in (counts | {"text": index.num_texts}).items() if number}


def _write_held_out(job: TrainJob, index: Index) -> None:
    """The plan of validation is the same whatever the seed: each document once, no caption left out."""
    data = job.config.data.model_copy(update={"mixture": None, "null_caption_share": 0.0, "batch_packs": 1})
    write_table(index.to_table(), job.at(_HELD_OUT, "index.parquet"))
    write_table(make_plan(index, data, 0, None, 1).to_table(), job.at(_HELD_OUT, "plan.parquet"))


def _read_held_out(job: TrainJob) -> tuple[Index, Plan]:
    with as_damaged(job.at(_HELD_OUT)):
        index = Index.from_table(read_table(job.at(_HELD_OUT, "index.parquet")))
        table = read_table(job.at(_HELD_OUT, "plan.parquet"))
        return index, Plan.from_table(table, int(table["pack"][-1].as_py()) + 1, 1)


def _text_tokenizer(job: TrainJob) -> PreTrainedTokenizerBase:
    if job.text_tokenizer is not None:
        if not storage.is_remote(job.text_tokenizer):
            return load_text_tokenizer(job.text_tokenizer)
        with storage.local_folder(job.text_tokenizer) as folder:
            return load_text_tokenizer(folder)
    texts = captions(job.shard_uris, job.rows_used, job.removed)
    return train_text_tokenizer(texts, job.config.data.text_vocab_size)


def _vocabulary(job: TrainJob, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Of the text tokenizer and the codes; where the model that is gone on from says its own, the two must be one.

    Raises TrainingError.
    """
    made = Vocabulary.of(tokenizer, job.codebook_size)
    place = None if job.init_from is None else storage.join(job.init_from, FILE_NAME)
    if place is None or not storage.exists(place):
        return made
    with as_damaged(place):
        known = Vocabulary.model_validate(storage.read_json(place))
    if known.codebook_size != made.codebook_size:
        raise TrainingError(
            f"{place}: the model knows {known.codebook_size} codes, those of the token shards come from a tokenizer "
            f"of {made.codebook_size}; tokenize with the one that the model was trained on, or train a model anew"
        )
    if known != made:
        raise TrainingError(
            f"{place}: the model's words have other ids than those of data.text_tokenizer {job.text_tokenizer}; leave "
            "it out, and the model's own is taken"
        )
    return made
