"""The index: lengths are exact, unusable rows are counted by reason."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenizer.sequence import SequenceLayout
from tokenizer.text import train_text_tokenizer
from tokenizer.vocabulary import Vocabulary
from training.index import Index, build_index, captions


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
    index, excluded = build_index([uri], "f" * 16, layout, 64)
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
        build_index(shard_uris, "another", layout, 64)
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
