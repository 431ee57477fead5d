"""Which documents are held out: a share of each sort, always the same ones, never a part of what belongs together."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenmill.tokenizer.sequence import SequenceLayout
from tokenmill.tokenizer.text import train_text_tokenizer
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.data.dialogues import DIALOGUES
from tokenmill.training.data.held_out import FAMILIES, Fate, HeldOut, is_held_out
from tokenmill.training.data.index import build_index, captions
from tokenmill.training.data.spoken import media_key


@pytest.fixture(scope="module")
def layout(mixed_uris):
    tokenizer = train_text_tokenizer(captions(mixed_uris, None), 300)
    return SequenceLayout(tokenizer, Vocabulary.of(tokenizer, 64))


def ids_of(uris):
    return [(row["media_id"], row["kind"]) for uri in uris for row in pq.read_table(uri).to_pylist()]


def fates(index):
    """By entry of the index."""
    return dict(zip(index.media.tolist(), index.fate.tolist(), strict=True))


def test_the_share_is_that_of_random_documents_and_a_larger_one_holds_out_more():
    keys = np.array([media_key(f"{n:032x}") for n in range(20_000)], np.uint64)
    small, large = is_held_out(keys, 0.05), is_held_out(keys, 0.2)
    assert small.mean() == pytest.approx(0.05, abs=0.006) and large.mean() == pytest.approx(0.2, abs=0.01)
    assert large[small].all() and not is_held_out(keys, 0.0).any()


def test_no_document_moves_when_others_come_and_go(mixed_uris, layout, tmp_path, text_row, write_shard):
    before, _ = build_index(mixed_uris, None, layout, 64, held_out=HeldOut(0.3))
    rows = [row for row in pq.read_table(mixed_uris[0]).to_pylist() if row["kind"] != "image"]
    others = [text_row(f"new {n}", "words of a new text, " * 20) for n in range(30)]
    changed = write_shard(tmp_path / "part-7.parquet", [*others, *rows[::-1]])
    after, _ = build_index([changed], None, layout, 64, held_out=HeldOut(0.3))
    common = fates(before).keys() & fates(after).keys()
    assert len(common) > 20 and {fates(before)[key] for key in common} == {Fate.TRAINED, Fate.HELD_OUT}
    assert all(fates(before)[key] == fates(after)[key] for key in common)


def test_a_text_goes_with_all_its_pieces(mixed_uris, layout):
    index, _ = build_index(mixed_uris, None, layout, 64, held_out=HeldOut(0.3))
    texts = [media_id for media_id, kind in ids_of(mixed_uris) if kind == "text"]
    num_pieces = []
    for media_id in texts:
        keys = {media_key(media_id, piece) for piece in range(40)} & fates(index).keys()
        num_pieces.append(len(keys))
        [is_held] = is_held_out(np.array([media_key(media_id)], np.uint64), 0.3)
        assert {fates(index)[key] for key in keys} == {int(is_held)}
    assert max(num_pieces) > 2


def test_a_dialogue_goes_with_its_medium(mixed_uris, layout):
    images = [media_id for media_id, kind in ids_of(mixed_uris) if kind == "image"]
    turns = [{"question": "what?", "answer": "a square"}]
    rows = [{"media_id": media_id, "turns": turns} for media_id in [*images, *images, *[None] * 30]]
    dialogues = pa.Table.from_pylist(rows, schema=DIALOGUES)
    index, _ = build_index(mixed_uris, None, layout, 512, dialogues=dialogues, held_out=HeldOut(0.3))
    found = fates(index)
    for number, media_id in enumerate([*images, *images]):
        assert found[media_key(f"{media_id}#{number}")] == found[media_key(media_id)]
    alone = {found[media_key(f"None#{number}")] for number in range(2 * len(images), len(rows))}
    assert alone == {Fate.TRAINED, Fate.HELD_OUT}


def test_families_are_held_out_whole_and_what_is_near_a_trained_one_is_neither():
    keys = np.array([media_key(name) for name in "abcdefghijklmnopqrstuvwxyz"], np.uint64)
    inside, outside = keys[is_held_out(keys, 0.3)], keys[~is_held_out(keys, 0.3)]
    joined, left, near = outside[0], inside[0], inside[1]
    rows = sorted([(joined, inside[2], False), (left, outside[1], False), (near, near, True)])
    held_out = HeldOut(0.3, pa.table(list(zip(*rows, strict=True)), schema=FAMILIES))
    found = dict(zip(keys.tolist(), held_out.fates(keys).tolist(), strict=True))
    assert (found[joined], found[left], found[near]) == (Fate.HELD_OUT, Fate.TRAINED, Fate.NEAR_TRAINED)
    others = [key for key in keys if key not in (joined, left, near)]
    assert all(found[key] == (key in inside) for key in others)


def test_a_part_of_the_index_no_longer_says_its_fate(mixed_uris, layout):
    whole, _ = build_index(mixed_uris, None, layout, 64, held_out=HeldOut(0.3))
    trained, held_out = whole.of_fate(Fate.TRAINED), whole.of_fate(Fate.HELD_OUT)
    assert len(trained) + len(held_out) == len(whole) and not set(trained.media) & set(held_out.media)
    assert "fate" not in trained.to_table().column_names and "fate" in whole.to_table().column_names
    plain, _ = build_index(mixed_uris, None, layout, 64)
    assert np.array_equal(plain.media, whole.media) and not len(plain.fate)
