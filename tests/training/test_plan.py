"""The plan: a pure function, every document once per epoch, the same documents per step whatever the world size."""

from collections import Counter

import numpy as np
import pytest

from training.config import DataConfig
from training.index import Index
from training.plan import Plan, draw, make_plan, sequence_tokens

NUM_DOCUMENTS = 3_000


@pytest.fixture(scope="module")
def index():
    rng = np.random.default_rng(0)
    shard = np.repeat(np.arange(3), NUM_DOCUMENTS // 3).astype(np.int32)
    return Index(
        shard=shard,
        row_group=np.tile(np.repeat(np.arange(10), 100), 3).astype(np.int32),
        row=np.tile(np.arange(100), 30).astype(np.int32),
        media=rng.integers(0, 2**63, NUM_DOCUMENTS).astype(np.uint64),
        is_video=np.zeros(NUM_DOCUMENTS, bool),
        grid=np.ones((NUM_DOCUMENTS, 3), np.int32),
        medium_tokens=rng.integers(60, 100, NUM_DOCUMENTS).astype(np.int32),
        caption_tokens=rng.integers(0, 28, NUM_DOCUMENTS).astype(np.int32),
    )


def config(**changes):
    return DataConfig(**({"context_tokens": 128, "pack_tokens": 1024, "batch_packs": 4} | changes))


def test_pure_function_of_its_input(index):
    plans = [make_plan(index, config(), seed, None, 2) for seed in (5, 5, 6)]
    hashes = [plan.hash(index) for plan in plans]
    assert hashes[0] == hashes[1] != hashes[2]


def test_every_document_once_per_epoch_and_no_pack_overflows(index):
    plan = make_plan(index, config(), 0, None, 3)
    assert (np.bincount(plan.documents) == 3).all()
    sizes = np.add.reduceat(sequence_tokens(index, plan.documents, plan.is_null_caption), plan.starts[:-1])
    assert sizes.max() <= 1024
    assert sizes.sum() / (plan.num_packs * 1024) > 0.98
    assert plan.num_steps == -(-plan.num_packs // 4)


def test_steps_take_as_many_epochs_as_needed(index):
    plan = make_plan(index, config(), 0, 200, None)
    assert (plan.num_steps, plan.num_packs) == (200, 800)
    one_epoch = make_plan(index, config(), 0, None, 1)
    assert plan.num_packs > 2 * one_epoch.num_packs
    np.testing.assert_array_equal(plan.documents[:NUM_DOCUMENTS], one_epoch.documents)


@pytest.mark.parametrize("batch_packs", [1, 4, 5])
def test_same_documents_per_step_for_any_world_size(index, batch_packs):
    plan = make_plan(index, config(batch_packs=batch_packs), 0, None, 1)

    def documents(step, world):
        found: Counter[int] = Counter()
        for rank in range(world):
            for pack in plan.step_packs(step, rank, world):
                found.update(plan.documents[plan.starts[pack] : plan.starts[pack + 1]].tolist())
        return found

    everything: Counter[int] = Counter()
    for step in range(plan.num_steps):
        alone = documents(step, 1)
        assert all(documents(step, world) == alone for world in (2, 3, 7))
        everything += alone
    assert set(everything.values()) == {1} and len(everything) == NUM_DOCUMENTS


def test_decisions_depend_on_the_medium_alone(index):
    """Adding documents or changing the order of shards changes no decision about a document."""
    order = np.random.default_rng(1).permutation(NUM_DOCUMENTS)[:1000]
    np.testing.assert_array_equal(draw(index.media[order], 3, 1, 2), draw(index.media, 3, 1, 2)[order])


def test_draws_are_uniform_and_independent(index):
    draws = np.stack([draw(index.media, *key) for key in ((0, 0, 1), (0, 0, 2), (0, 1, 1), (1, 0, 1))])
    assert (np.abs(draws.mean(1) - 0.5) < 0.03).all()
    assert (np.abs(np.corrcoef(draws) - np.eye(4)) < 0.08).all()


def test_shares_are_met(index):
    plan = make_plan(index, config(understanding_share=0.25, null_caption_share=0.1), 0, None, 20)
    without = index.caption_tokens[plan.documents] == 0
    assert plan.is_null_caption[without].all()
    assert abs(plan.is_null_caption[~without].mean() - 0.1) < 0.01
    assert abs(plan.is_caption_last[~plan.is_null_caption].mean() - 0.25) < 0.01
    assert not (plan.is_caption_last & plan.is_null_caption).any()


def test_a_window_reads_its_row_groups_once(index):
    """With a window of 300 documents, a row group's documents stand close together in the plan, and order is random."""
    plan = make_plan(index, config(window_documents=300), 0, None, 1)
    groups = (index.shard * 10 + index.row_group)[plan.documents]
    spans = [np.ptp(np.flatnonzero(groups == group)) for group in range(30)]
    assert max(spans) < 400
    assert (np.diff(plan.documents[:300]) == 1).mean() < 0.05
    whole = make_plan(index, config(), 0, None, 1)
    groups = (index.shard * 10 + index.row_group)[whole.documents]
    assert min(np.ptp(np.flatnonzero(groups == group)) for group in range(30)) > 2_000


def test_a_table_and_back(index):
    plan = make_plan(index, config(), 0, None, 1)
    again = Plan.from_table(plan.to_table(), plan.num_steps, plan.batch_packs)
    assert again.hash(index) == plan.hash(index)
    np.testing.assert_array_equal(again.starts, plan.starts)
