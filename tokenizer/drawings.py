"""What a model drew, kept with its codes: Parquet files of a folder."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenmill import storage
from tokenmill.storage.errors import TrainingError
from tokenmill.storage.failures import as_damaged

DRAWINGS = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("codes", pa.list_(pa.uint16()), nullable=False),  # (t, h, w) in row-major order
        pa.field("grid_t", pa.int32()),  # null for a picture
        pa.field("grid_h", pa.int32(), nullable=False),
        pa.field("grid_w", pa.int32(), nullable=False),
        pa.field("fps", pa.float64()),
        pa.field("model", pa.string(), nullable=False),  # the name of the run's folder
    ]
)


def read_drawings(uri: str) -> pa.Table:
    """Rows of DRAWINGS of a folder, each once, in the order of files. Raises TrainingError where there is none."""
    names = sorted(name for name in storage.list_names(uri) if name.endswith(".parquet"))
    if not names:
        raise TrainingError(f"{uri}: no drawings there; `tokenmill prefer draw` makes some")
    tables = []
    for place in (storage.join(uri, name) for name in names):
        with as_damaged(place):
            table = pq.read_table(pa.BufferReader(storage.read_bytes(place)))
            tables.append(table.select(DRAWINGS.names).cast(DRAWINGS))
    whole = pa.concat_tables(tables)
    first = np.unique(whole["sample_id"].to_numpy(zero_copy_only=False), return_index=True)[1]
    return whole.take(pa.array(np.sort(first)))
