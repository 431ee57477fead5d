"""The index: lengths are exact, unusable rows are counted by reason."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenmill.tokenizer.sequence import SequenceLayout
from tokenmill.tokenizer.text import train_text_tokenizer
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.data.index import Index, build_index, captions, media_key


@pytest.fixture(scope="module")
def layout(shard_uris):
    tokenizer = train_text_tokenizer(captions(shard_uris, None), 300)
    return SequenceLayout(tokenizer, Vocabulary.of(tokenizer, 64))


def test_lengths_are_those_of_the_sequences(shard_uris, layout):
    index, excluded = build_index(shard_uris, None, layout, 64)
    assert (len(index), sum(excluded.values())) == (40, 0)
    for position in range(len(index)):
        table = pq.ParquetFile(shard_uris[index.shard[position]]).read_row_group(index.row_group[position])
        medium = table.slice(index.row[position], 1).to_pylist()[0]
        shape = index.grid[position] if index.is_video[position] else index.grid[position][1:]
        codes = np.array(medium["codes"]).reshape(shape)
        sequence = layout.build(codes, layout.caption_ids(medium["caption"]), medium["fps"])
        assert len(sequence.ids) == index.medium_tokens[position] + index.caption_tokens[position]


def test_rows_left_out_are_counted_by_reason(tmp_path, layout, token_row, write_shard):
    rng = np.random.default_rng(0)
    rows = [token_row(number, rng) for number in range(10)]
    rows[1] |= {"codes": None, "grid_t": None, "grid_h": None, "grid_w": None, "reject_reason": "unreadable"}
    rows[2] |= {"fingerprint": "0" * 16}
    rows[4] |= {"caption": "word " * 100}
    uri = write_shard(tmp_path / "part.parquet", rows)
    index, excluded = build_index([uri], ["f" * 16], layout, 64)
    assert dict(excluded) == {"rejected": 1, "other_fingerprint": 1, "too_long": 1}
    assert len(index) + sum(excluded.values()) == 10
    assert set(zip(index.row_group.tolist(), index.row.tolist(), strict=True)) == {
        (0, 0), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4),
    }  # fmt: skip


def test_nothing_to_train_on_is_an_error(tmp_path, layout, shard_uris, write_shard):
    empty = write_shard(tmp_path / "empty.parquet", [])
    with pytest.raises(ValueError, match="tokenize first"):
        build_index([empty], None, layout, 64)
    with pytest.raises(ValueError, match="tokenize first"):
        build_index(shard_uris, ["another"], layout, 64)
    with pytest.raises(ValueError, match="tokenize first"):
        build_index([], None, layout, 64)


def test_a_file_that_is_no_token_shard_is_named(tmp_path, layout):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other\.parquet.*tokens"):
        build_index([str(tmp_path / "other.parquet")], None, layout, 64)


def test_blank_captions_are_no_captions(tmp_path, layout, token_row, write_shard):
    rng = np.random.default_rng(0)
    rows = [token_row(n, rng, caption=caption) for n, caption in enumerate([None, "", "  ", "red"])]
    index, _ = build_index([write_shard(tmp_path / "part.parquet", rows)], None, layout, 64)
    caption_tokens = index.caption_tokens[np.argsort(index.row)]
    assert (caption_tokens[:3] == 0).all()
    assert caption_tokens[3] > 0


def test_the_order_of_documents_does_not_depend_on_the_shards(tmp_path, layout, token_row, write_shard):
    rng = np.random.default_rng(0)
    rows = [token_row(number, rng) for number in range(30)]
    one = [write_shard(tmp_path / "one.parquet", rows)]
    several = [write_shard(tmp_path / f"{i}.parquet", rows[i::3][::-1], row_group_rows=4) for i in range(3)]
    indexes = [build_index(uris, None, layout, 64)[0] for uris in (one, several)]
    assert len(set(indexes[0].media.tolist())) == 30
    for name in ("media", "is_video", "grid", "medium_tokens", "caption_tokens"):
        np.testing.assert_array_equal(*(getattr(index, name) for index in indexes))


def test_a_table_and_back(shard_uris, layout):
    index, _ = build_index(shard_uris, None, layout, 64)
    again = Index.from_table(index.to_table())
    for name in Index.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(index, name))
        assert getattr(again, name).dtype == getattr(index, name).dtype


def test_long_texts_are_cut_and_media_are_as_without_them(shard_uris, mixed_uris, layout):
    media_alone, _ = build_index(shard_uris[:1], None, layout, 64)
    index, excluded = build_index(mixed_uris, None, layout, 64)
    assert sum(excluded.values()) == 0
    assert index.num_texts == 15 and (~index.is_text).sum() == len(media_alone) == 20
    for name in ("media", "is_video", "grid", "medium_tokens", "caption_tokens"):
        np.testing.assert_array_equal(getattr(index, name)[~index.is_text], getattr(media_alone, name))
    assert len(media_alone.piece) == 0 and not media_alone.is_text.any() and media_alone.piece_of(0) is None

    tables = [pq.read_table(uri, columns=["media_id", "kind", "caption"]).to_pylist() for uri in mixed_uris]
    texts = {row["media_id"]: row["caption"] for rows in tables for row in rows if row["kind"] == "text"}
    expected = {}
    for media_id, text in texts.items():
        num_tokens = len(layout.caption_ids(text)) + 2
        expected |= {
            media_key(media_id, n): min(64, num_tokens - 64 * n) for n in range(-(-num_tokens // 64))
        }  # fmt: skip
    is_text = index.is_text
    lengths = (index.medium_tokens + index.caption_tokens)[is_text].tolist()
    assert dict(zip(index.media[is_text].tolist(), lengths, strict=True)) == expected
    assert len(expected) == is_text.sum() > 40, "some are cut, and every piece has a key of its own"
    assert index.medium_tokens[is_text].sum() == 2 * 15, "one BOS and one EOS for each text"
    assert not index.is_video[is_text].any() and not index.grid[is_text].any()

    again = Index.from_table(index.to_table())
    for name in Index.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(index, name))


def test_keys_of_pieces_depend_on_no_shard(tmp_path, layout, token_row, some_texts, write_shard):
    rng = np.random.default_rng(0)
    rows = [*(token_row(number, rng) for number in range(9)), *some_texts(9)]
    one = [write_shard(tmp_path / "one.parquet", rows)]
    several = [write_shard(tmp_path / f"{i}.parquet", rows[i::3][::-1], row_group_rows=4) for i in range(3)]
    indexes = [build_index(uris, None, layout, 64)[0] for uris in (one, several)]
    for name in ("media", "medium_tokens", "caption_tokens", "piece", "text_start", "text_skip"):
        np.testing.assert_array_equal(*(getattr(index, name) for index in indexes))


def test_texts_left_out_are_counted_and_no_tokenizer_matters(tmp_path, layout, text_row, write_shard):
    rows = [
        text_row("whole", "the mill turns"),
        text_row("null grid", "the mill turns", grid_t=None, grid_h=None, grid_w=None),
        text_row("null", None),
        text_row("blank", " \n"),
        text_row("bad", None, reject_reason="not_text"),
    ]
    index, excluded = build_index([write_shard(tmp_path / "part.parquet", rows)], ["f" * 16], layout, 64)
    assert dict(+excluded) == {"empty_text": 2, "rejected": 1}
    assert len(index) == 2 and not index.grid.any()


def test_the_text_tokenizer_learns_from_documents_too(tmp_path, text_row, token_row, write_shard):
    rows = [token_row(0, np.random.default_rng(0), caption="red"), text_row("a", "the mill turns")]
    assert sorted(captions([write_shard(tmp_path / "part.parquet", rows)], None)) == ["red", "the mill turns"]


def test_an_unknown_kind_is_named(tmp_path, layout, text_row, write_shard):
    with pytest.raises(ValueError, match="sound.*image, video, text"):
        build_index([write_shard(tmp_path / "a.parquet", [text_row("a", "x", kind="sound")])], None, layout, 64)
