"""The plan: a pure function, every document once per epoch, the same documents per step whatever the world size."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from tokenmill.training.config import DataConfig
from tokenmill.training.data.index import Index
from tokenmill.training.data.plan import Plan, draw, make_plan, of_sort, sequence_tokens

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


def with_text(share):
    """A mixture of text and media."""
    return {"text": share, "media": 1 - share}


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


def test_the_plan_of_media_alone_is_what_it_always_was(index):
    """Trainings begun before there were text documents go on: their plan has the hash that it had."""
    assert make_plan(index, config(), 5, None, 2).hash(index) == "676c2d9ac853a903"
    assert make_plan(index, config(window_documents=300), 5, 90, None).hash(index) == "a76d826758ef00d9"


@pytest.fixture(scope="module")
def mixed(index):
    """The 3,000 media and 1,000 pieces of text in shards of their own, of 2 to 128 tokens."""
    rng = np.random.default_rng(1)
    count = 1_000
    text = {
        "shard": np.repeat(np.arange(3, 5), count // 2).astype(np.int32),
        "row_group": np.tile(np.repeat(np.arange(5), 100), 2).astype(np.int32),
        "row": np.tile(np.arange(100), 10).astype(np.int32),
        "media": rng.integers(0, 2**63, count).astype(np.uint64),
        "is_video": np.zeros(count, bool),
        "grid": np.zeros((count, 3), np.int32),
        "medium_tokens": np.full(count, 2, np.int32),
        "caption_tokens": rng.integers(0, 127, count).astype(np.int32),
    }
    columns = {name: np.concatenate([getattr(index, name), values]) for name, values in text.items()}
    nothing = np.zeros(NUM_DOCUMENTS + count, np.int32)
    piece = np.repeat([-1, 0], [NUM_DOCUMENTS, count]).astype(np.int32)
    return Index(**columns, piece=piece, text_start=nothing, text_skip=nothing)


def share_of(plan, index, packs=slice(None)):
    """The share of tokens that is text, over the documents of some packs."""
    slots = slice(int(plan.starts[:-1][packs][0]), int(plan.starts[1:][packs][-1]))
    tokens = sequence_tokens(index, plan.documents[slots], plan.is_null_caption[slots])
    return tokens[index.is_text[plan.documents[slots]]].sum() / tokens.sum()


def test_text_is_placed_whole_and_as_the_corpus_has_it(mixed):
    plan = make_plan(mixed, config(null_caption_share=0.5, understanding_share=0.9), 0, None, 2)
    assert (np.bincount(plan.documents) == 2).all()
    of_text = mixed.is_text[plan.documents]
    assert not plan.is_null_caption[of_text].any() and not plan.is_caption_last[of_text].any()
    lengths = sequence_tokens(mixed, plan.documents, plan.is_null_caption)[of_text]
    np.testing.assert_array_equal(lengths, 2 + mixed.caption_tokens[plan.documents[of_text]])


@pytest.mark.parametrize("window_documents", [100_000, 500])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.7])
def test_text_share_is_met_by_thinning_and_repeating_evenly(mixed, share, window_documents):
    plan = make_plan(mixed, config(mixture=with_text(share), window_documents=window_documents), 3, None, 4)
    assert share_of(plan, mixed) == pytest.approx(share, abs=3e-4)
    times = np.bincount(plan.documents, minlength=len(mixed))
    media, texts = times[:NUM_DOCUMENTS], times[NUM_DOCUMENTS:]
    once, others = (media, texts) if share < 0.5 else (texts, media)
    assert (once == 4).all(), "the largest share once an epoch"
    assert others.max() - others.min() <= 1, "no document twice more often than another of its sort"
    sizes = np.add.reduceat(sequence_tokens(mixed, plan.documents, plan.is_null_caption), plan.starts[:-1])
    assert sizes.max() <= 1024


def test_text_share_is_met_all_along(mixed):
    """Also in a run that stops inside an epoch, and in every stretch of it."""
    plan = make_plan(mixed, config(mixture=with_text(0.3)), 0, 110, None)
    stretches = [share_of(plan, mixed, slice(start, start + 44)) for start in range(0, plan.num_packs, 44)]
    assert len(stretches) == 10
    assert max(abs(share - 0.3) for share in stretches) < 0.06


def test_what_a_mixture_does_not_name_is_left_out(mixed, index):
    plan = make_plan(mixed, config(mixture={"media": 1.0}), 0, None, 1)
    assert sorted(plan.documents.tolist()) == list(range(NUM_DOCUMENTS))
    assert make_plan(index, config(mixture={"media": 1.0}), 0, None, 1).num_packs == plan.num_packs


def test_images_and_videos_have_shares_of_their_own(mixed):
    is_video = ~mixed.is_text & (np.arange(len(mixed)) % 4 == 0)
    three = dataclasses.replace(mixed, is_video=is_video)
    shares = {"text": 0.1, "image": 0.4, "video": 0.5}
    plan = make_plan(three, config(mixture=shares), 0, None, 3)
    tokens = sequence_tokens(three, plan.documents, plan.is_null_caption)
    found = {sort: tokens[of_sort(three, sort)[plan.documents]].sum() / tokens.sum() for sort in shares}
    assert found == pytest.approx(shares, abs=1e-3)
    times = np.bincount(plan.documents, minlength=len(three))
    assert (times[is_video] == 3).all()
    assert np.ptp(times[of_sort(three, "image")]) == 1 and times[of_sort(three, "image")].max() < 3


def test_a_plan_with_text_share_is_pure_and_free_of_shards(mixed):
    """Below one window, also where text is thinned: a table and its export give the same plan."""
    plans = [make_plan(mixed, config(mixture=with_text(0.1)), 5, None, 2) for _ in range(2)]
    assert plans[0].hash(mixed) == plans[1].hash(mixed)
    elsewhere = dataclasses.replace(mixed, shard=np.zeros_like(mixed.shard), row_group=mixed.row)
    assert make_plan(elsewhere, config(mixture=with_text(0.1)), 5, None, 2).hash(elsewhere) == plans[0].hash(mixed)
    other = dataclasses.replace(mixed, text_skip=mixed.text_skip + 1)
    assert plans[0].hash(other) != plans[0].hash(mixed)


def test_thinned_text_reads_few_row_groups(mixed):
    """Above one window, an epoch that takes a tenth of the text takes it from few of its row groups."""
    plan = make_plan(mixed, config(mixture=with_text(0.02), window_documents=100), 0, None, 1)
    texts = plan.documents[mixed.is_text[plan.documents]]
    assert 0.05 < len(texts) / 1_000 < 0.15
    assert len(set(zip(mixed.shard[texts].tolist(), mixed.row_group[texts].tolist(), strict=True))) <= 2


def test_a_share_that_nothing_can_meet_is_an_error(mixed, index):
    with pytest.raises(ValueError, match=r"data.mixture.text = 0\.1: .* hold no text.*out of the mixture"):
        make_plan(index, config(mixture=with_text(0.1)), 0, None, 1)
    with pytest.raises(ValueError, match="hold no video that is used"):
        make_plan(mixed, config(mixture={"image": 0.5, "video": 0.5}), 0, None, 1)
    text_alone = {name: getattr(mixed, name)[NUM_DOCUMENTS:] for name in Index.__dataclass_fields__}
    make_plan(Index(**text_alone), config(), 0, None, 1)
    with pytest.raises(ValueError, match="hold no media"):
        make_plan(Index(**text_alone), config(mixture=with_text(0.5)), 0, None, 1)
