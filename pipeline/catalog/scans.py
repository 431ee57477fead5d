"""Data files of a table read: as a whole, in parts, and where in them something is."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from tokenmill import storage
from tokenmill.storage.failures import as_damaged

_BUFFER_BYTES = 1_048_576  # of a file that is read in parts


def shards(uris: list[str], schema: pa.Schema | None) -> pads.Dataset:
    """The rows of these files, of one disk or store; `schema` fills in columns that older files lack."""
    if not uris:
        return pads.dataset((schema or pa.schema([])).empty_table())
    filesystem, _ = storage.filesystem(uris[0])
    paths = [storage.filesystem(uri)[1] for uri in uris]
    return pads.dataset(paths, schema=schema, format="parquet", filesystem=filesystem)


def shard_batches(uri: str, names: list[str], num_rows: int) -> Iterator[pa.RecordBatch]:
    """Columns of one file, at most so many rows at a time; takes the memory of a row group of them, where a scan reads
    ahead and takes several times a file's. Raises DamagedError.
    """
    filesystem, path = storage.filesystem(uri)
    with as_damaged(uri), filesystem.open_input_file(path) as opened:
        yield from pq.ParquetFile(opened, buffer_size=_BUFFER_BYTES).iter_batches(num_rows, columns=names)


def matches(rows: pads.Dataset, where: pc.Expression) -> list[tuple[str, pa.ChunkedArray]]:
    """By name of the file, of those that hold rows for which `where` is true: bool, which ones, in the file's order.

    One pass over all files: a large set of ids in `where` is hashed once.
    """
    found: dict[str, list[pa.Array]] = {}
    for tagged in rows.scanner(columns={"hit": pc.coalesce(where, pc.scalar(False))}).scan_batches():
        if tagged.record_batch.num_rows:
            name = tagged.fragment.path.rsplit("/", 1)[1]
            found.setdefault(name, []).append(tagged.record_batch["hit"])
    masks = [(name, pa.chunked_array(parts)) for name, parts in sorted(found.items())]
    return [(name, mask) for name, mask in masks if pc.any(mask).as_py()]
