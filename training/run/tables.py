"""Tables of a run's folder: Parquet, read and written whole."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

from tokenmill import storage


def write_table(table: pa.Table, uri: str) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_statistics=False)
    storage.write_bytes(uri, sink.getvalue())


def read_table(uri: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
