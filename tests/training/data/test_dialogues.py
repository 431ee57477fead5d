"""Dialogues of a .jsonl become documents about their media; what does not fit is named with its line."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from tokenmill.storage.errors import TrainingError
from tokenmill.storage.run_log import read_log
from tokenmill.tokenizer.dialogue import Turn, build_dialogue
from tokenmill.tokenizer.sequence import Kind
from tokenmill.training.data.dialogues import read_dialogues, table_of
from tokenmill.training.data.loader import Loader
from tokenmill.training.job import SPOKEN, TrainJob
from tokenmill.training.run.prepare import load_prepared, prepare
from tokenmill.training.run.tables import write_table
from tokenmill.training.run.worker import train_worker

ASK = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a square"}]


def lines(*documents):
    return "\n".join(json.dumps(document) for document in documents).encode()


def test_both_forms_are_read():
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "a square"}]
    found = list(
        read_dialogues(lines({"image": "a.jpg", "conversations": ASK}, {"video": "b", "messages": messages}), "f")
    )
    assert [(each.line, each.name, each.turns) for each in found] == [
        (1, "a.jpg", [Turn("What is it?", "a square")]),
        (2, "b", [Turn("What is it?", "a square")]),
    ]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"image": "a", "conversations": ASK[:1]}, "line 1: questions and answers do not take turns"),
        ({"image": "a", "conversations": ASK[::-1]}, "do not take turns"),
        ({"image": "a", "conversations": [ASK[0], ASK[0]]}, "a question has no answer"),
        ({"image": "a", "conversations": []}, "no key 'messages'"),
        ({"image": "a", "video": "b", "conversations": ASK}, "about one medium"),
        ({"messages": [{"role": "system", "content": "Be brief"}, *ASK]}, "'system' speaks"),
        ([1], "line 1"),
    ],
)
def test_what_is_no_dialogue_is_named(document, words):
    with pytest.raises(TrainingError, match=words):
        list(read_dialogues(lines(document), "chat.jsonl"))


@pytest.fixture()
def spoken_job(make_job, small_config, shard_uris):
    """(dialogues, **data) -> a job that has them; about the i-th medium of the shards for an int."""
    ids = [row["media_id"] for uri in shard_uris for row in pq.read_table(uri).to_pylist()]

    def make(spoken, mixture=None, folder="run", **optimizer):
        config = small_config(**optimizer)
        data = config.data.model_copy(update={"dialogues": "chat.jsonl", "mixture": mixture, "context_tokens": 192})
        job = make_job(folder, config.model_copy(update={"data": data}))
        turns = [{"from": who, "value": text} for who, text in (("human", "What is it?"), ("gpt", "a thing"))]
        documents = [{"conversations": turns} | ({} if at is None else {"image": "x"}) for at in spoken]
        media = [None if at is None else ids[at] if isinstance(at, int) else at for at in spoken]
        write_table(table_of(list(read_dialogues(lines(*documents), "f")), media), job.at(SPOKEN))
        return job

    return make


def test_each_dialogue_is_a_document_about_its_medium(spoken_job):
    job = spoken_job([0, 3, 3, None], {"dialogue": 1.0}, epochs=1, steps=None)
    assert (prepare(job)["num_dialogues"], job.read_summary()["num_documents"]) == (4, 4)
    ready = load_prepared(job)
    loader = Loader(ready.plan, ready.index, job.shard_uris, ready.layout, 192, dialogues=ready.dialogues)
    packs = [loader.pack(number) for number in range(ready.plan.num_packs)]
    found = sorted(
        tuple(pack.ids[pack.documents == number].tolist())
        for pack in packs
        for number in range(pack.documents.max() + 1)
    )
    rows = [row for uri in job.shard_uris for row in pq.read_table(uri).to_pylist()]
    turns, layout = [Turn("What is it?", "a thing")], ready.layout
    none = layout.caption_ids(None)
    image = layout.build(np.reshape(rows[0]["codes"], (4, 3)), none)
    clip = layout.build(np.reshape(rows[3]["codes"], (2, 3, 3)), none, 8.0)
    expected = [build_dialogue(layout, turns, medium).ids.tolist() for medium in (image, clip, clip, None)]
    assert found == sorted(tuple(ids) for ids in expected)
    assert sum((pack.kinds[pack.documents >= 0] == Kind.TEXT).sum() for pack in packs) == 4 * (
        len(layout.caption_ids("a thing")) + 1
    )


def test_dialogues_are_learned_beside_the_rest(spoken_job):
    job = spoken_job([*range(12), None], steps=40, lr=1e-2)
    train_worker(job)
    log = read_log(job.run_uri)
    assert log[-1]["text"] < log[0]["text"] - 1
    assert job.read_summary()["num_documents"] == 40 + 13


def test_a_dialogue_about_nothing_there_stops_it(spoken_job):
    with pytest.raises(TrainingError, match=r"1 of 2 dialogues are about media without tokens \(gone\)"):
        prepare(spoken_job([0, "gone"]))


def test_long_dialogues_are_counted(spoken_job):
    job = spoken_job([0, 1, None], {"dialogue": 1.0})
    data = job.config.data.model_copy(update={"context_tokens": 70})
    job = TrainJob(job.config.model_copy(update={"data": data}), job.shard_uris, 64, job.run_uri)
    summary = prepare(job)
    assert (summary["num_documents"], summary["excluded"]["too_long"]) == (1, 2)
