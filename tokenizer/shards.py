"""The token shard: the one format in which `stages` and `training` meet.

A shard is a Parquet file of the `tokens` table. Codes are local to the modality (no language-model offset), so the same
shards serve any text vocabulary. `codes` is `list<uint16>`, byte-stream-split and zstd: 1.89 bytes per token on random
15-bit codes (a plain zstd list takes 2.46, Emu3's one pickle per sample 8.85), and any Parquet reader reads it.
A row that could not be tokenized stays, with `codes` null and its `reject_reason`. A text document is a row of kind
text: `caption` is the whole document, `codes` are an empty list and the grid is 0, because text ids belong to the
training's text vocabulary and are made there; so its `fingerprint` says nothing of what training sees.
"""

import pyarrow as pa
import pyarrow.parquet as pq

from tokenmill import storage

TOKENS = pa.schema(
    [
        pa.field("media_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # image | video | text
        pa.field(
            "codes", pa.list_(pa.uint16())
        ),  # (grid_t, grid_h, grid_w) in row-major order; null when rejected, empty for text
        pa.field("grid_t", pa.int32()),
        pa.field("grid_h", pa.int32()),
        pa.field("grid_w", pa.int32()),
        pa.field("fps", pa.float64()),  # of the frames that were encoded; null for images and text
        pa.field("frames_trimmed", pa.int32()),  # tail frames that filled no group of four
        pa.field("caption", pa.string()),  # of a text document: all of it
        pa.field("reject_reason", pa.string()),  # null = kept
        pa.field("fingerprint", pa.string(), nullable=False),  # of the tokenizer: its weights and geometry
        pa.field("run_id", pa.string(), nullable=False),
    ]
)


_ROW_GROUP_ROWS = 1024  # of tables with codes: training reads single groups
_PLAIN_ROW_GROUP_ROWS = 1 << 16  # of others: read whole, one request for each column of a group


def write_parquet(table: pa.Table, uri: str, row_group_rows: int | None = None) -> int:
    """Write `table` to one Parquet file and return its size in bytes. `codes` columns are byte-stream-split."""
    data = parquet_of(table, row_group_rows)
    put(uri, data)
    return data.size


def put(uri: str, data: pa.Buffer) -> None:
    """Write one file; its folder is made."""
    filesystem, path = storage.filesystem(uri)
    if not storage.is_remote(uri):
        filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
    with filesystem.open_output_stream(path) as stream:
        stream.write(data)


def parquet_of(table: pa.Table, row_group_rows: int | None = None) -> pa.Buffer:
    """The Parquet file of `table` in memory, which takes less than the table does."""
    codes = [
        f"{field.name}.list.element"
        for field in table.schema
        if pa.types.is_list(field.type) and pa.types.is_integer(field.type.value_type)
    ]
    others = [field.name for field in table.schema if pa.types.is_string(field.type)]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=others,
        use_byte_stream_split=codes or False,
        row_group_size=row_group_rows or (_ROW_GROUP_ROWS if codes else _PLAIN_ROW_GROUP_ROWS),
        write_statistics=others,
    )
    return sink.getvalue()
