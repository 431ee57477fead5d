"""The loader: packs hold exactly the planned documents; few reads; a changed shard is noticed."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from tokenmill.tokenizer.sequence import Kind
from tokenmill.training.config import LossWeights
from tokenmill.training.data.loader import Loader, RowGroups
from tokenmill.training.data.spoken import media_key
from tokenmill.training.pack import PADDING, Pack
from tokenmill.training.run.prepare import load_prepared, prepare


@pytest.fixture()
def loader(make_job):
    return load(make_job())


def load(job, **changes):
    prepare(job)
    ready = load_prepared(job)
    return Loader(
        ready.plan, ready.index, job.shard_uris, ready.layout, job.config.data.pack_tokens, **changes
    ), ready  # fmt: skip


def test_packs_parse_back_into_the_planned_documents(loader):
    loader, ready = loader
    plan, v = ready.plan, ready.layout.vocabulary
    for number in range(plan.num_packs):
        pack = loader.pack(number)
        slots = range(plan.starts[number], plan.starts[number + 1])
        assert pack.documents.max() + 1 == len(slots)
        for count, slot in enumerate(slots):
            place = np.flatnonzero(pack.documents == count)
            assert (np.diff(place) == 1).all()
            np.testing.assert_array_equal(pack.positions[place], np.arange(len(place)))
            parsed = ready.layout.parse(pack.ids[place])
            grid = ready.index.grid[plan.documents[slot]]
            assert parsed.codes.shape == tuple(grid if ready.index.is_video[plan.documents[slot]] else grid[1:])
            assert parsed.is_caption_last == plan.is_caption_last[slot]
            assert (len(parsed.caption_ids) == 0) == plan.is_null_caption[slot]
        padding = pack.documents == PADDING
        assert (pack.ids[padding] == v.pad).all()
        assert pack.num_tokens == (~padding).sum()


def test_loss_weight_is_the_sum_over_predicted_tokens():
    pack = Pack(
        ids=np.arange(8, dtype=np.int32),
        kinds=np.array([3, 0, 0, 1, 3, 2, 0, 0], np.uint8),
        positions=np.array([0, 1, 2, 3, 0, 1, 0, 0], np.int32),
        documents=np.array([0, 0, 0, 0, 1, 1, PADDING, PADDING], np.int32),
    )
    assert Kind.TEXT == 0
    assert pack.loss_weight(LossWeights(1, 0.5)) == 2 + 0.5 * 2
    assert pack.loss_weight(LossWeights(0, 0.25)) == 0.25 * 2
    assert Pack.empty().loss_weight(LossWeights(1, 0.5)) == 0


def test_steps_of_all_ranks_are_the_packs_of_the_plan(loader):
    loader, ready = loader
    seen = {0: [], 1: [], 2: []}
    for rank in range(3):
        for step, packs in loader.steps(3, rank, 3):
            assert len(packs) == len(ready.plan.step_packs(step, rank, 3))
            seen[rank] += packs
    tokens = sum(pack.num_tokens for packs in seen.values() for pack in packs)
    alone = sum(pack.num_tokens for _, packs in loader.steps(3) for pack in packs)
    assert tokens == alone > 0


def test_row_groups_are_read_once_while_they_fit(shard_uris):
    groups = RowGroups(shard_uris, cache_bytes=1 << 20)
    for _ in range(3):
        for shard in range(2):
            for group in range(4):
                assert len(groups.get(shard, group)) == 5
    assert groups.num_reads == 8
    small = RowGroups(shard_uris, cache_bytes=1)
    for group in (0, 1, 0):
        small.get(0, group)
    assert small.num_reads == 3
    small.get(0, 0)
    assert small.num_reads == 3, "the newest stays, however large"


def test_a_changed_shard_is_an_error(make_job, tmp_path, token_row, write_shard, small_config):
    rng = np.random.default_rng(0)
    path = tmp_path / "part.parquet"
    uri = write_shard(path, [token_row(number, rng) for number in range(12)])
    loader, ready = load(make_job(config=small_config(steps=2), shard_uris=[uri]))
    write_shard(path, [token_row(number + 1, rng) for number in range(12)])
    with pytest.raises(ValueError, match=r"part\.parquet.*not what was planned"):
        for number in range(ready.plan.num_packs):
            loader.pack(number)


def test_pieces_in_packs_make_the_documents_and_nothing_touches_them(make_job, mixed_uris, small_config):
    """Whatever share of captions is left out or moved: all text is there, once in an epoch, in sequences of its own."""
    config = small_config(steps=None, epochs=1)
    data = config.data.model_copy(update={"null_caption_share": 1.0, "understanding_share": 1.0})
    job = make_job(config=config.model_copy(update={"data": data}), shard_uris=mixed_uris)
    loader, ready = load(job)
    plan, index, layout = ready.plan, ready.index, ready.layout
    of_text = index.is_text[plan.documents]
    assert not plan.is_null_caption[of_text].any() and not plan.is_caption_last[of_text].any()
    assert plan.is_null_caption[~of_text].all()

    pieces = {}
    for number in range(plan.num_packs):
        pack = loader.pack(number)
        for count, slot in enumerate(range(plan.starts[number], plan.starts[number + 1])):
            document = plan.documents[slot]
            place = pack.documents == count
            is_document = pack.kinds[place] == Kind.DOCUMENT
            assert is_document.any() == index.is_text[document]
            if index.is_text[document]:
                assert (is_document | (pack.ids[place] == layout.vocabulary.bos)).all()
                pieces[int(index.media[document])] = pack.ids[place]
    rows = [row for uri in mixed_uris for row in pq.read_table(uri).to_pylist() if row["kind"] == "text"]
    for row in rows:
        ids = np.concatenate([
            pieces.pop(media_key(row["media_id"], n)) for n in range(-(-len(layout.caption_ids(row["caption"])) // 62))
            if media_key(row["media_id"], n) in pieces
        ])  # fmt: skip
        assert ids.tolist() == [layout.vocabulary.bos, *layout.caption_ids(row["caption"]), layout.vocabulary.eos]
    assert len(rows) == 15 and not pieces


def test_a_changed_text_is_an_error(make_job, tmp_path, text_row, write_shard, small_config):
    path = tmp_path / "part.parquet"
    uri = write_shard(path, [text_row("a", "the mill turns grain " * 40)])
    loader, ready = load(make_job(config=small_config(steps=2), shard_uris=[uri]))
    for name, text in (("a", "the mill"), ("b", "the mill turns grain " * 40)):
        write_shard(path, [text_row(name, text)])
        fresh = Loader(ready.plan, ready.index, [uri], ready.layout, 192)
        with pytest.raises(ValueError, match=r"part\.parquet.*row 0 of row group 0 is not what was planned"):
            [fresh.pack(number) for number in range(ready.plan.num_packs)]


def test_loss_weight_counts_documents_as_captions():
    pack = Pack(
        ids=np.arange(5, dtype=np.int32),
        kinds=np.array([Kind.STRUCTURE, Kind.DOCUMENT, Kind.DOCUMENT, Kind.DOCUMENT, Kind.DOCUMENT], np.uint8),
        positions=np.array([0, 1, 2, 0, 1], np.int32),
        documents=np.array([0, 0, 0, 1, 1], np.int32),
    )
    assert pack.loss_weight(LossWeights(1, 0.5)) == 3, "the first token of a piece is predicted by nothing"
